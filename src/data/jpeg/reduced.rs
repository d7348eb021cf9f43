//! A large JPEG at a half, a quarter or an eighth of its size, in memory that goes with the result; a sequential one of
//! several scans at its own size, too.
//!
//! A photo of 12 megapixels takes 36 MB as pixels, of which a ViT sees a square of a few hundred.
//! Of every block of 8 x 8 only the lowest frequencies are kept and transformed to fewer pixels,
//! which is an ideal low-pass and costs no more than skipping the rest. A JPEG of one scan is
//! decoded row by row of its blocks; of several scans, or progressive, the kept coefficients wait
//! in memory, with one bit for every other one, which refinement has to know about.
//!
//! What is missing or damaged is an error, never grey.

use std::io::Read;

use image::metadata::Orientation;

use super::bits::{Bits, Broken, Codes};
use super::coefficients::{Scan, band_first, band_refined, first_coefficient, sequential};
use super::frame::{Frame, FrameComponent};
use super::plane::{Colours, Plane};
use super::tables;

impl Frame {
    /// Reads as far as the frame header; none for a kind that nothing here decodes.
    pub fn peek(reader: &mut dyn Read) -> Result<Option<Self>, Broken> {
        let mut decoder = Decoder::new(reader);
        decoder.start()?;
        let found = loop {
            let marker = decoder.bits.marker()?;
            match marker {
                0xC0..=0xC2 => break decoder.frame(marker)?,
                0xC3 | 0xC5..=0xC7 | 0xC9..=0xCF | 0xDA => return Ok(None),
                0xD9 => return Err(Broken::Ended),
                0xE0 | 0xE1 | 0xEE => decoder.application(marker)?,
                _ => decoder.skip(marker)?,
            }
        };
        Ok(found.map(|frame| Self {
            // What is wrong behind the header is told when it is decoded.
            in_scans: frame.progressive || decoder.is_split(&frame).unwrap_or(false),
            ..frame
        }))
    }
}

/// A decoded picture, not yet upright.
pub(super) struct Picture {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`
    pub pixels: Vec<u8>,
    pub orientation: Orientation,
}

/// Decodes what [`Frame::peek`] accepted, at `1 / factor`: 1, 2, 4 or 8. `memory` bounds what the
/// coefficients of several scans may take.
pub(super) fn decode(
    reader: &mut dyn Read,
    factor: usize,
    memory: usize,
) -> Result<Picture, Broken> {
    let mut decoder = Decoder::new(reader);
    let tables = [&mut decoder.dc, &mut decoder.ac];
    for (slots, codes) in tables.into_iter().zip(tables::codes()?) {
        let codes = codes.into_iter().map(Some);
        slots
            .iter_mut()
            .zip(codes)
            .for_each(|(slot, code)| *slot = code);
    }
    decoder.start()?;
    decoder.run(factor, memory)
}

struct Decoder<'r> {
    bits: Bits<'r>,
    quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<Codes>; 4],
    ac: [Option<Codes>; 4],
    restart_interval: usize,
    /// The colour transform of an Adobe segment.
    adobe: Option<u8>,
    jfif: bool,
    orientation: Orientation,
}

impl<'r> Decoder<'r> {
    fn new(reader: &'r mut dyn Read) -> Self {
        Self {
            bits: Bits::new(reader),
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            adobe: None,
            jfif: false,
            orientation: Orientation::NoTransforms,
        }
    }

    fn start(&mut self) -> Result<(), Broken> {
        match self.bits.word()? {
            0xFFD8 => Ok(()),
            _ => Err(Broken::Damaged("it does not start as one")),
        }
    }

    fn run(&mut self, factor: usize, memory: usize) -> Result<Picture, Broken> {
        let mut frame = None;
        let mut planes = heapless::Vec::<Plane, 3>::new();
        let mut pixels = Vec::new();
        let mut finished = false;
        loop {
            let marker = self.bits.marker()?;
            match marker {
                0xC0..=0xC2 if frame.is_none() => {
                    let found = self.frame(marker)?.filter(Frame::can_be_reduced);
                    let found = found.ok_or(Broken::Damaged("its frame header changed"))?;
                    planes = found.planes(factor);
                    let (width, height) = found.reduced(factor);
                    pixels = vec![0; 3 * width * height];
                    frame = Some(found);
                }
                0xDB => self.quantisation_tables()?,
                0xC4 => self.code_tables()?,
                0xDD => {
                    self.bits.word()?;
                    self.restart_interval = self.bits.word()?.into();
                }
                0xDA => {
                    let Some(frame) = &frame else {
                        return Err(Broken::Damaged("pixel data comes before the frame header"));
                    };
                    if finished {
                        return Err(Broken::Damaged("it has more pixel data than it can hold"));
                    }
                    let scan = self.scan_header(frame, &planes)?;
                    for &(plane, ..) in &scan.planes {
                        let plane = &mut planes[plane];
                        if plane.quantisation.is_none() {
                            plane.quantisation = self.quantisation[plane.table];
                        }
                    }
                    let whole = !frame.progressive && scan.planes.len() == planes.len();
                    let (rows, _) = frame.units();
                    if whole {
                        planes.iter_mut().for_each(|plane| plane.allocate(1, false));
                        let colours = self.colours(&planes);
                        self.scan(frame, &scan, &mut planes, |row, planes| {
                            colours.paint(frame, factor, row, 0, planes, &mut pixels)
                        })?;
                        finished = true;
                    } else {
                        if planes[0].kept.is_empty() {
                            let needed = planes.iter().map(|p| p.bytes(rows, frame.progressive));
                            if needed.sum::<usize>() + pixels.len() > memory {
                                return Err(Broken::Damaged(
                                    "its several scans take more memory than there is",
                                ));
                            }
                            for plane in &mut planes {
                                plane.allocate(rows, frame.progressive);
                            }
                        }
                        self.scan(frame, &scan, &mut planes, |_, _| Ok(()))?;
                    }
                }
                0xD9 => {
                    let frame = frame.ok_or(Broken::Ended)?;
                    if !finished {
                        if planes[0].kept.is_empty() {
                            return Err(Broken::Ended);
                        }
                        let colours = self.colours(&planes);
                        for row in 0..frame.units().0 {
                            colours.paint(&frame, factor, row, row, &mut planes, &mut pixels)?;
                        }
                    }
                    let (width, height) = frame.reduced(factor);
                    return Ok(Picture {
                        width,
                        height,
                        pixels,
                        orientation: self.orientation,
                    });
                }
                0xE0 | 0xE1 | 0xEE => self.application(marker)?,
                0xC0..=0xCF | 0xDC => {
                    return Err(Broken::Damaged("a header stands where none belongs"));
                }
                _ => self.skip(marker)?,
            }
        }
    }

    /// Bytes of a segment behind its length.
    fn segment(&mut self) -> Result<usize, Broken> {
        let length = usize::from(self.bits.word()?);
        length
            .checked_sub(2)
            .ok_or(Broken::Damaged("a segment has an impossible length"))
    }

    fn skip(&mut self, marker: u8) -> Result<(), Broken> {
        // Restarts, a second start and the like have no segment.
        if !matches!(marker, 0x01 | 0xD0..=0xD8) {
            for _ in 0..self.segment()? {
                self.bits.byte()?;
            }
        }
        Ok(())
    }

    fn application(&mut self, marker: u8) -> Result<(), Broken> {
        let length = self.segment()?;
        // Other segments can be large, and these are not when they matter.
        let mut head = heapless::Vec::<u8, 12>::new();
        let mut exif = Vec::new();
        for _ in 0..length {
            let byte = self.bits.byte()?;
            let behind = head.push(byte).is_err() || head.len() > 6;
            if behind && marker == 0xE1 && head.starts_with(b"Exif\0\0") {
                exif.push(byte);
            }
        }
        match marker {
            0xE0 => self.jfif |= head.starts_with(b"JFIF\0"),
            0xEE if head.starts_with(b"Adobe") => self.adobe = head.get(11).copied(),
            _ => {}
        }
        if let Some(orientation) = Orientation::from_exif_chunk(&exif) {
            self.orientation = orientation;
        }
        Ok(())
    }

    /// The frame; none for more than 8 bits or four components.
    fn frame(&mut self, marker: u8) -> Result<Option<Frame>, Broken> {
        let length = self.segment()?;
        let precision = self.bits.byte()?;
        let (height, width) = (self.bits.word()?, self.bits.word()?);
        let count = usize::from(self.bits.byte()?);
        if length != 6 + 3 * count {
            return Err(Broken::Damaged("its frame header has an impossible length"));
        }
        let mut components = heapless::Vec::new();
        for _ in 0..count {
            let (id, sampling, table) = (self.bits.byte()?, self.bits.byte()?, self.bits.byte()?);
            let component = FrameComponent {
                id,
                h: usize::from(sampling >> 4),
                v: usize::from(sampling & 15),
                table: table.into(),
            };
            if !(1..=4).contains(&component.h) || !(1..=4).contains(&component.v) {
                return Err(Broken::Damaged("a component has an impossible size"));
            }
            if components.push(component).is_err() {
                return Ok(None);
            }
        }
        // One component alone is not interleaved, whatever its factors say (A.2.2).
        if let [only] = &mut components[..] {
            (only.h, only.v) = (1, 1);
        }
        let frame = Frame {
            width: width.into(),
            height: height.into(),
            progressive: marker == 0xC2,
            in_scans: marker == 0xC2,
            orientation: self.orientation,
            components,
        };
        Ok((precision == 8).then_some(frame))
    }

    /// Whether the first scan that follows leaves components to others.
    fn is_split(&mut self, frame: &Frame) -> Result<bool, Broken> {
        loop {
            match self.bits.marker()? {
                0xDA => {
                    self.segment()?;
                    return Ok(usize::from(self.bits.byte()?) < frame.components.len());
                }
                0xD9 => return Err(Broken::Ended),
                marker => self.skip(marker)?,
            }
        }
    }

    fn quantisation_tables(&mut self) -> Result<(), Broken> {
        let mut left = self.segment()?;
        while left > 0 {
            let head = self.bits.byte()?;
            let wide = head >> 4 > 0;
            let mut table = [0; 64];
            for value in &mut table {
                *value = match wide {
                    true => self.bits.word()?,
                    false => self.bits.byte()?.into(),
                };
            }
            let slot = self.quantisation.get_mut(usize::from(head & 15));
            *slot.ok_or(Broken::Damaged("a table has an impossible number"))? = Some(table);
            let size = if wide { 129 } else { 65 };
            left = left
                .checked_sub(size)
                .ok_or(Broken::Damaged("a table is cut short"))?;
        }
        Ok(())
    }

    fn code_tables(&mut self) -> Result<(), Broken> {
        let mut left = self.segment()?;
        while left > 0 {
            let head = self.bits.byte()?;
            let mut counts = [0; 16];
            for count in &mut counts {
                *count = self.bits.byte()?;
            }
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let mut symbols = [0; 256];
            let symbols = symbols
                .get_mut(..total)
                .ok_or(Broken::Damaged("a code table is impossible"))?;
            for symbol in symbols.iter_mut() {
                *symbol = self.bits.byte()?;
            }
            let tables = match head >> 4 {
                0 => &mut self.dc,
                _ => &mut self.ac,
            };
            let slot = tables.get_mut(usize::from(head & 15));
            let slot = slot.ok_or(Broken::Damaged("a table has an impossible number"))?;
            *slot = Some(Codes::new(counts, symbols)?);
            left = left
                .checked_sub(17 + total)
                .ok_or(Broken::Damaged("a table is cut short"))?;
        }
        Ok(())
    }

    fn scan_header(&mut self, frame: &Frame, planes: &[Plane]) -> Result<Scan, Broken> {
        const BAD: Broken = Broken::Damaged("a scan header is impossible");
        let length = self.segment()?;
        let count = usize::from(self.bits.byte()?);
        if !(1..=4).contains(&count) || length != 4 + 2 * count {
            return Err(BAD);
        }
        let mut of_scan = heapless::Vec::<(usize, usize, usize), 4>::new();
        for _ in 0..count {
            let (id, tables) = (self.bits.byte()?, self.bits.byte()?);
            let plane = planes.iter().position(|plane| plane.id == id).ok_or(BAD)?;
            if of_scan.iter().any(|&(other, ..)| other == plane) {
                return Err(BAD);
            }
            let entry = (plane, usize::from(tables >> 4), usize::from(tables & 15));
            of_scan.push(entry).map_err(|_| BAD)?;
        }
        let (first, last) = (self.bits.byte()?, self.bits.byte()?);
        let approximation = self.bits.byte()?;
        let scan = Scan {
            planes: of_scan,
            first: first.into(),
            last: last.into(),
            high: u32::from(approximation >> 4),
            low: u32::from(approximation & 15),
        };
        let fits = match frame.progressive {
            false => (scan.first, scan.last, scan.high, scan.low) == (0, 63, 0, 0),
            true => {
                let dc_alone = scan.first > 0 || scan.last == 0;
                let one_plane = scan.first == 0 || scan.planes.len() == 1;
                let refines = scan.high == 0 || scan.high == scan.low + 1;
                scan.first <= scan.last
                    && scan.last < 64
                    && scan.low < 14
                    && dc_alone
                    && one_plane
                    && refines
            }
        };
        fits.then_some(scan).ok_or(BAD)
    }

    /// Decodes a scan; `rendered(row, planes)` sees each row of units of a scan of all components.
    fn scan(
        &mut self,
        frame: &Frame,
        scan: &Scan,
        planes: &mut [Plane],
        mut unit_row: impl FnMut(usize, &mut [Plane]) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        const NO_TABLE: Broken = Broken::Damaged("a code table is missing");
        let streamed = !frame.progressive && scan.planes.len() == planes.len();
        let (rows, columns) = match &scan.planes[..] {
            // One component goes by its own blocks, and the padding of units is not coded.
            &[(plane, ..)] if planes.len() > 1 => {
                let (h_max, v_max) = frame.largest();
                let plane = &planes[plane];
                let wide = (frame.width * plane.h).div_ceil(h_max);
                let high = (frame.height * plane.v).div_ceil(v_max);
                (high.div_ceil(8), wide.div_ceil(8))
            }
            _ => frame.units(),
        };
        let alone = scan.planes.len() == 1;
        let mut predictions = [0i32; 4];
        let mut end_of_band = 0u32;
        let mut unit = 0;
        for row in 0..rows {
            let stored = if streamed { 0 } else { row };
            for column in 0..columns {
                let interval = self.restart_interval;
                if interval > 0 && unit > 0 && unit % interval == 0 {
                    self.bits.restart((unit / interval - 1) as u8)?;
                    (predictions, end_of_band) = ([0; 4], 0);
                }
                unit += 1;
                for (slot, &(plane, dc, ac)) in scan.planes.iter().enumerate() {
                    let plane = &mut planes[plane];
                    let (h, v) = if alone { (1, 1) } else { (plane.h, plane.v) };
                    for at in 0..h * v {
                        let (y, x) = (stored * v + at / h, column * h + at % h);
                        let index = y * plane.wide + x;
                        let prediction = &mut predictions[slot];
                        if !frame.progressive {
                            let dc = self.dc.get(dc).and_then(Option::as_ref);
                            let ac = self.ac.get(ac).and_then(Option::as_ref);
                            let (dc, ac) = (dc.ok_or(NO_TABLE)?, ac.ok_or(NO_TABLE)?);
                            sequential(&mut self.bits, dc, ac, prediction, plane, index)?;
                        } else if scan.first == 0 {
                            let dc = self.dc.get(dc).and_then(Option::as_ref);
                            first_coefficient(&mut self.bits, dc, scan, prediction, plane, index)?;
                        } else {
                            let ac = self.ac.get(ac).and_then(Option::as_ref);
                            let ac = ac.ok_or(NO_TABLE)?;
                            let band = &mut end_of_band;
                            match scan.high {
                                0 => band_first(&mut self.bits, ac, scan, band, plane, index)?,
                                _ => band_refined(&mut self.bits, ac, scan, band, plane, index)?,
                            }
                        }
                    }
                }
            }
            unit_row(row, planes)?;
        }
        Ok(())
    }

    fn colours(&self, planes: &[Plane]) -> Colours {
        let letters = planes.iter().map(|plane| plane.id).eq(*b"RGB");
        match self.adobe {
            Some(0) if !self.jfif => Colours::Rgb,
            None if letters && !self.jfif => Colours::Rgb,
            _ => Colours::YCbCr,
        }
    }
}
