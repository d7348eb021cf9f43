//! The entropy-coded part of a JPEG: bits from a reader, and Huffman codes in them (ITU-T T.81,
//! annex F).

use std::io::{self, Read};

/// Bytes read from the file at a time.
pub(super) const CHUNK: usize = 8192;
/// Codes of up to so many bits are looked up in one step.
const SHORT: u32 = 9;

/// Why the pixel data cannot be read on.
#[derive(Debug)]
pub(super) enum Broken {
    Io(io::Error),
    /// The file ends.
    Ended,
    /// It says what no encoder writes.
    Damaged(&'static str),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Bytes and bits of a file, read once from front to back. The reader is behind a pointer: for every type of reader
/// there would be another copy of the decoder.
pub(super) struct Bits<'r> {
    reader: &'r mut dyn Read,
    chunk: Box<[u8; CHUNK]>,
    at: usize,
    end: usize,
    /// The next bits, from the highest on, and zeros behind them.
    held: u64,
    count: u32,
    /// The marker that ended the entropy-coded segment.
    marker: Option<u8>,
}

impl<'r> Bits<'r> {
    pub fn new(reader: &'r mut dyn Read) -> Self {
        Self {
            reader,
            chunk: Box::new([0; CHUNK]),
            at: 0,
            end: 0,
            held: 0,
            count: 0,
            marker: None,
        }
    }

    /// The next byte, none at the end of the file.
    fn next(&mut self) -> Result<Option<u8>, Broken> {
        if self.at == self.end {
            self.at = 0;
            self.end = loop {
                match self.reader.read(&mut self.chunk[..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            if self.end == 0 {
                return Ok(None);
            }
        }
        self.at += 1;
        Ok(Some(self.chunk[self.at - 1]))
    }

    pub fn byte(&mut self) -> Result<u8, Broken> {
        self.next()?.ok_or(Broken::Ended)
    }

    pub fn word(&mut self) -> Result<u16, Broken> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// The next marker: the one that ended the pixel data, or else what follows; bytes that belong to
    /// nothing are skipped.
    pub fn marker(&mut self) -> Result<u8, Broken> {
        (self.held, self.count) = (0, 0);
        if let Some(marker) = self.marker.take() {
            return Ok(marker);
        }
        loop {
            while self.byte()? != 0xFF {}
            let code = self.marker_code()?;
            if code != 0 {
                return Ok(code);
            }
        }
    }

    /// The restart marker that has to come now.
    pub fn restart(&mut self, number: u8) -> Result<(), Broken> {
        // Less than a byte is padding; more was not meant to be left.
        let left = self.count;
        (self.held, self.count) = (0, 0);
        let found = match self.marker.take() {
            Some(marker) => marker,
            None => match self.byte()? {
                0xFF => self.marker_code()?,
                _ => 0,
            },
        };
        match left < 8 && found == 0xD0 + number % 8 {
            true => Ok(()),
            false => Err(Broken::Damaged("a restart marker is missing")),
        }
    }

    /// The rest of a marker behind its first `FF`, which may stand several times.
    fn marker_code(&mut self) -> Result<u8, Broken> {
        loop {
            let code = self.byte()?;
            if code != 0xFF {
                return Ok(code);
            }
        }
    }

    fn fill(&mut self) -> Result<(), Broken> {
        while self.count <= 56 && self.marker.is_none() {
            let byte = self.byte()?;
            if byte == 0xFF {
                let code = self.marker_code()?;
                if code != 0 {
                    self.marker = Some(code);
                    return Ok(());
                }
            }
            self.held |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        Ok(())
    }

    fn consume(&mut self, bits: u32) -> Result<(), Broken> {
        if bits > self.count {
            return Err(match self.marker {
                Some(0xD9) | None => Broken::Ended,
                Some(_) => Broken::Damaged("a marker stands inside the pixel data"),
            });
        }
        self.held <<= bits;
        self.count -= bits;
        Ok(())
    }

    /// An unsigned number of `bits` bits, at most 16.
    pub fn bits(&mut self, bits: u32) -> Result<u32, Broken> {
        if bits == 0 {
            return Ok(0);
        }
        if self.count < bits {
            self.fill()?;
        }
        let value = (self.held >> (64 - bits)) as u32;
        self.consume(bits)?;
        Ok(value)
    }

    /// A signed number of `bits` bits, as coefficients are coded (figure F.12).
    pub fn signed(&mut self, bits: u32) -> Result<i32, Broken> {
        let value = self.bits(bits)? as i32;
        Ok(match bits > 0 && value < 1 << (bits - 1) {
            true => value - (1 << bits) + 1,
            false => value,
        })
    }

    /// The symbol of the next code.
    pub fn symbol(&mut self, codes: &Codes) -> Result<u8, Broken> {
        if self.count < 16 {
            self.fill()?;
        }
        let (length, symbol) = codes.short[(self.held >> (64 - SHORT)) as usize];
        if length > 0 {
            self.consume(length.into())?;
            return Ok(symbol);
        }
        for length in SHORT + 1..=16 {
            let code = (self.held >> (64 - length)) as u32;
            if code < codes.ends[length as usize] {
                self.consume(length)?;
                let index = code.wrapping_add(codes.offsets[length as usize]);
                let symbol = codes.symbols.get(index as usize);
                return symbol
                    .copied()
                    .ok_or(Broken::Damaged("a code means nothing"));
            }
        }
        match self.marker {
            Some(_) if self.count < 16 => self.consume(16).map(|()| 0),
            _ => Err(Broken::Damaged("a code means nothing")),
        }
    }
}

/// A Huffman table.
#[derive(Clone)]
pub(super) struct Codes {
    /// Length and symbol of the code that begins with these bits; length 0 for longer ones.
    short: Box<[(u8, u8); 1 << SHORT]>,
    symbols: heapless::Vec<u8, 256>,
    /// Behind the last code of each length, where there is one.
    ends: [u32; 17],
    /// From a code of each length to the index of its symbol.
    offsets: [u32; 17],
}

impl Codes {
    /// `counts` codes of each length from 1 to 16, and what they stand for.
    pub fn new(counts: [u8; 16], symbols: &[u8]) -> Result<Self, Broken> {
        const BAD: Broken = Broken::Damaged("a code table is impossible");
        let mut short = Box::new([(0, 0); 1 << SHORT]);
        let (mut ends, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut index) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(&counts) {
            let last = index + usize::from(count);
            let symbols = symbols.get(index..last).ok_or(BAD)?;
            offsets[length as usize] = (index as u32).wrapping_sub(code);
            for &symbol in symbols {
                if code >> length != 0 {
                    return Err(BAD);
                }
                if length <= SHORT {
                    let first = (code << (SHORT - length)) as usize;
                    short[first..first + (1 << (SHORT - length))].fill((length as u8, symbol));
                }
                code += 1;
            }
            if count > 0 {
                ends[length as usize] = code;
            }
            index = last;
            code <<= 1;
        }
        let symbols = symbols[..index].iter().copied().collect();
        Ok(Self {
            short,
            symbols,
            ends,
            offsets,
        })
    }
}
