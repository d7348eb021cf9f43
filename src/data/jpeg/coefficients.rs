//! The coefficients of one block, as a scan codes them (ITU-T T.81, F.2.2 and G.1.2).

use super::bits::{Bits, Broken, Codes};
use super::plane::Plane;

/// What a scan header says.
pub(super) struct Scan {
    /// Plane, and its tables.
    pub planes: heapless::Vec<(usize, usize, usize), 4>,
    /// First and last coefficient.
    pub first: usize,
    pub last: usize,
    /// Bits that came before and that are to come, 0 for none.
    pub high: u32,
    pub low: u32,
}

/// All coefficients of a block of a sequential JPEG (F.2.2).
pub(super) fn sequential(
    bits: &mut Bits<'_>,
    dc: &Codes,
    ac: &Codes,
    prediction: &mut i32,
    plane: &mut Plane,
    index: usize,
) -> Result<(), Broken> {
    let size = bits.symbol(dc)?.into();
    if size > 11 {
        return Err(Broken::Damaged("a coefficient is too large"));
    }
    *prediction = prediction.wrapping_add(bits.signed(size)?);
    let value = *prediction as i16;
    let block = plane.block(index);
    block.fill(0);
    block[0] = value;
    let mut k = 1;
    while k < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            match run {
                15 => k += 16,
                _ => break,
            }
            continue;
        }
        k += run;
        if k > 63 {
            return Err(Broken::Damaged("a block has too many coefficients"));
        }
        let value = bits.signed(size)? as i16;
        if let Some(place) = plane.place(k) {
            plane.block(index)[place] = value;
        }
        k += 1;
    }
    Ok(())
}

/// The lowest coefficient of a block of a progressive JPEG, or one more bit of it (G.1.2.1).
pub(super) fn first_coefficient(
    bits: &mut Bits<'_>,
    dc: Option<&Codes>,
    scan: &Scan,
    prediction: &mut i32,
    plane: &mut Plane,
    index: usize,
) -> Result<(), Broken> {
    if scan.high > 0 {
        let bit = bits.bits(1)? as i16;
        plane.block(index)[0] |= bit << scan.low;
        return Ok(());
    }
    let dc = dc.ok_or(Broken::Damaged("a code table is missing"))?;
    let size = bits.symbol(dc)?.into();
    if size > 11 {
        return Err(Broken::Damaged("a coefficient is too large"));
    }
    *prediction = prediction.wrapping_add(bits.signed(size)?);
    plane.block(index)[0] = (*prediction << scan.low) as i16;
    Ok(())
}

/// Keeps a coefficient of a progressive JPEG.
fn keep(plane: &mut Plane, index: usize, k: usize, value: i16) {
    plane.seen[index] |= 1 << k;
    if let Some(place) = plane.place(k) {
        plane.block(index)[place] = value;
    }
}

/// The first bits of a band of coefficients (G.1.2.2).
pub(super) fn band_first(
    bits: &mut Bits<'_>,
    ac: &Codes,
    scan: &Scan,
    end_of_band: &mut u32,
    plane: &mut Plane,
    index: usize,
) -> Result<(), Broken> {
    if *end_of_band > 0 {
        *end_of_band -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run == 15 {
                k += 16;
                continue;
            }
            *end_of_band = (1 << run) + bits.bits(run)? - 1;
            break;
        }
        k += run as usize;
        if k > scan.last {
            return Err(Broken::Damaged("a block has too many coefficients"));
        }
        let value = bits.signed(size)? << scan.low;
        keep(plane, index, k, value as i16);
        k += 1;
    }
    Ok(())
}

/// One more bit of a band of coefficients (G.1.2.3).
pub(super) fn band_refined(
    bits: &mut Bits<'_>,
    ac: &Codes,
    scan: &Scan,
    end_of_band: &mut u32,
    plane: &mut Plane,
    index: usize,
) -> Result<(), Broken> {
    let step = 1i16 << scan.low;
    let mut k = scan.first;
    if *end_of_band == 0 {
        while k <= scan.last {
            let symbol = bits.symbol(ac)?;
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut value = 0;
            match size {
                0 if run < 15 => {
                    *end_of_band = (1 << run) + bits.bits(run)?;
                    break;
                }
                0 => {}
                1 => value = if bits.bits(1)? == 1 { step } else { -step },
                _ => return Err(Broken::Damaged("a refinement has more than one bit")),
            }
            // Zeros are counted; what is not zero gets its bit on the way.
            while k <= scan.last {
                if plane.seen[index] & (1 << k) != 0 {
                    refine(bits, step, plane, index, k)?;
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
            if value != 0 {
                if k > scan.last {
                    return Err(Broken::Damaged("a block has too many coefficients"));
                }
                keep(plane, index, k, value);
            }
            k += 1;
        }
    }
    if *end_of_band > 0 {
        for k in k..=scan.last {
            if plane.seen[index] & (1 << k) != 0 {
                refine(bits, step, plane, index, k)?;
            }
        }
        *end_of_band -= 1;
    }
    Ok(())
}

/// The next bit of a coefficient that is not zero.
fn refine(
    bits: &mut Bits<'_>,
    step: i16,
    plane: &mut Plane,
    index: usize,
    k: usize,
) -> Result<(), Broken> {
    if bits.bits(1)? == 1
        && let Some(place) = plane.place(k)
    {
        let value = &mut plane.block(index)[place];
        if *value & step == 0 {
            *value = value.wrapping_add(if *value >= 0 { step } else { -step });
        }
    }
    Ok(())
}
