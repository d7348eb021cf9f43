//! JPEGs one after another in a stream of bytes, as Motion JPEG is written: with or without text
//! between the pictures (`multipart/x-mixed-replace`), and never trusted to be whole.

/// Finds the pictures in a stream that is fed in pieces.
///
/// The markers are walked (ITU-T T.81, annex B), so that a thumbnail inside a header does not end
/// a picture. A picture that breaks off is dropped and the next start looked for. At most
/// `max_bytes` are held.
#[derive(Debug)]
pub struct Jpegs {
    picture: Vec<u8>,
    expects: Expects,
    max_bytes: usize,
    dropped: u64,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// Anything, until 0xFF 0xD8.
    Start,
    StartCode,
    /// 0xFF between segments.
    Marker,
    Code,
    /// A segment's length, high byte first.
    Length {
        scan: bool,
    },
    LengthLow {
        scan: bool,
        high: u8,
    },
    /// So many more bytes of a segment; then compressed data, or another marker.
    Segment {
        scan: bool,
        left: usize,
    },
    /// Compressed data.
    Data,
    /// What follows 0xFF in compressed data.
    DataCode,
}

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;

impl Jpegs {
    /// Pictures of up to `max_bytes`; longer ones are dropped.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            picture: Vec::new(),
            expects: Expects::Start,
            max_bytes,
            dropped: 0,
        }
    }

    /// Pictures that were begun and not handed out.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes the next bytes of the stream and hands every picture that ends in them to `picture`.
    pub fn feed(&mut self, bytes: &[u8], mut picture: impl FnMut(&[u8])) {
        for &byte in bytes {
            if self.expects != Expects::Start && self.expects != Expects::StartCode {
                if self.picture.len() == self.max_bytes {
                    self.drop_picture();
                    continue;
                }
                self.picture.push(byte);
            }
            match self.after(byte) {
                Some(END) => {
                    picture(&self.picture);
                    self.picture.clear();
                    self.expects = Expects::Start;
                }
                Some(START) => {
                    self.dropped += u64::from(!self.picture.is_empty());
                    self.picture.clear();
                    self.picture.extend([0xFF, START]);
                    self.expects = Expects::Marker;
                }
                _ => {}
            }
        }
    }

    /// Moves on by one byte; the code of a marker that starts or ends a picture.
    fn after(&mut self, byte: u8) -> Option<u8> {
        self.expects = match self.expects {
            Expects::Start if byte == 0xFF => Expects::StartCode,
            Expects::Start => Expects::Start,
            Expects::StartCode => match byte {
                START => return Some(START),
                0xFF => Expects::StartCode,
                _ => Expects::Start,
            },
            Expects::Marker if byte == 0xFF => Expects::Code,
            Expects::Code | Expects::DataCode => match byte {
                START | END => return Some(byte),
                0xFF => self.expects,
                0x00 | 0xD0..=0xD7 if self.expects == Expects::DataCode => Expects::Data,
                0x01 | 0xD0..=0xD7 => Expects::Marker,
                0x00 => return self.drop_picture(),
                code => Expects::Length { scan: code == SCAN },
            },
            Expects::Length { scan } => Expects::LengthLow { scan, high: byte },
            Expects::LengthLow { scan, high } => {
                // The length counts its own two bytes.
                match usize::from(u16::from_be_bytes([high, byte])).checked_sub(2) {
                    Some(0) => Self::after_segment(scan),
                    Some(left) => Expects::Segment { scan, left },
                    None => return self.drop_picture(),
                }
            }
            Expects::Segment { scan, left: 1 } => Self::after_segment(scan),
            Expects::Segment { scan, left } => Expects::Segment {
                scan,
                left: left - 1,
            },
            Expects::Data if byte == 0xFF => Expects::DataCode,
            Expects::Data => Expects::Data,
            Expects::Marker => return self.drop_picture(),
        };
        None
    }

    fn after_segment(scan: bool) -> Expects {
        if scan { Expects::Data } else { Expects::Marker }
    }

    fn drop_picture(&mut self) -> Option<u8> {
        self.picture.clear();
        self.dropped += 1;
        self.expects = Expects::Start;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pictures that `bytes`, fed in pieces of `piece`, hold.
    fn pictures(stream: &mut Jpegs, bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            stream.feed(piece, |picture| found.push(picture.to_vec()));
        }
        found
    }

    /// A picture with a thumbnail in a header, two scans, a restart marker and a stuffed byte.
    fn picture(filling: u8) -> Vec<u8> {
        let thumbnail = [0xFF, 0xD8, 0xFF, 0xD9];
        let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x06];
        jpeg.extend(thumbnail);
        jpeg.extend([0xFF, 0xFF, 0xDA, 0x00, 0x03, 0x07, filling, 0xFF, 0x00]);
        jpeg.extend([0xFF, 0xD3, filling, 0xFF, 0xC4, 0x00, 0x02, 0xFF, 0xDA]);
        jpeg.extend([0x00, 0x03, 0x08, filling, filling, 0xFF, 0xD9]);
        jpeg
    }

    #[test]
    fn pictures_are_found_however_the_bytes_are_cut_and_whatever_lies_between() {
        let mut bytes = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n".to_vec();
        bytes.extend(picture(1));
        bytes.extend(b"\r\n--frame\xFF\r\n\r\n");
        bytes.extend(picture(2));
        bytes.extend(picture(3));
        for piece in 1..bytes.len() {
            let mut stream = Jpegs::new(1000);
            assert_eq!(
                pictures(&mut stream, &bytes, piece),
                [picture(1), picture(2), picture(3)]
            );
            assert_eq!(stream.dropped(), 0);
        }
    }

    #[test]
    fn a_picture_that_breaks_off_or_is_too_long_is_dropped_and_the_next_one_found() {
        let whole = picture(1);
        for end in 2..whole.len() - 1 {
            // A length that was cut off makes a segment of the pictures that follow.
            let bytes = [&whole[..end], &picture(2).repeat(100)].concat();
            let mut stream = Jpegs::new(1000);
            let found = pictures(&mut stream, &bytes, 7);
            assert_eq!(found.last(), Some(&picture(2)), "cut at {end}");
            assert!(!found.contains(&whole), "cut at {end}");
        }
        let mut stream = Jpegs::new(1000);
        let cut = [&whole[..whole.len() - 2], &picture(2)].concat();
        assert_eq!(pictures(&mut stream, &cut, 7), [picture(2)]);
        assert_eq!(stream.dropped(), 1);
        let mut long = picture(1);
        long.splice(24..24, [0x55; 100]);
        let mut stream = Jpegs::new(100);
        let found = pictures(&mut stream, &[long, picture(2)].concat(), 11);
        assert_eq!((found, stream.dropped()), (vec![picture(2)], 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_hold_more_than_its_bound(
            bytes in prop::collection::vec(
                prop_oneof![Just(0xFF_u8), Just(0xD8), Just(0xDA), Just(0x00), any::<u8>()], 0..600
            ),
        ) {
            let mut stream = Jpegs::new(64);
            let found = pictures(&mut stream, &bytes, 5);
            prop_assert!(stream.picture.len() <= 64);
            for picture in found {
                prop_assert!(picture.len() <= 64 && picture.starts_with(b"\xFF\xD8"));
                prop_assert!(picture.ends_with(b"\xFF\xD9"));
            }
        }
    }
}
