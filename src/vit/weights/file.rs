//! The bytes of a model file: its header, and tensors behind it.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::Stored;
use super::{ContentHash, Preprocessing, Tensors, WeightsError, malformed};
use crate::kernels::panels::Panels;
use crate::vit::Geometry;

const MAGIC: [u8; 8] = *b"fledgewt";
const VERSION: u32 = 2;
pub(super) const ALIGNMENT: usize = 64;
/// A header is a few hundred bytes; anything much longer is not one of ours.
const MAX_HEADER: usize = 1 << 16;

#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub geometry: Geometry,
    pub preprocessing: Preprocessing,
    pub hash: ContentHash,
}

pub(super) fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(super) fn write_file(
    path: &Path,
    header: &Header,
    tensors: &Tensors,
    layout: &[Stored],
) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // As any new file: a service of another user reads models too.
    let mut temporary = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    let mut out = BufWriter::new(temporary.as_file_mut());
    let encoded = postcard::to_allocvec(header).map_err(io::Error::other)?;
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(
        &u32::try_from(encoded.len())
            .map_err(io::Error::other)?
            .to_le_bytes(),
    )?;
    out.write_all(&encoded)?;
    for (tensor, stored) in tensors.0.iter().zip(layout) {
        let position = usize::try_from(out.stream_position()?).map_err(io::Error::other)?;
        out.write_all(&vec![0; position.next_multiple_of(ALIGNMENT) - position])?;
        match *stored {
            Stored::Plain(_) => out.write_all(&little_endian(tensor))?,
            Stored::Panels(rows, cols) => {
                out.write_all(&little_endian(&Panels::pack(tensor, rows, cols)))?;
            }
        }
    }
    out.flush()?;
    drop(out);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Whether lengths computed from a geometry stay far from overflow and divisions by zero.
fn plausible(g: &Geometry) -> bool {
    let sizes = [
        g.dim,
        g.depth,
        g.heads,
        g.hidden,
        g.patch,
        g.image,
        g.position_grid,
    ];
    sizes.iter().all(|size| (1..=1 << 14).contains(size))
        && g.registers <= 1 << 14
        && g.dim.is_multiple_of(g.heads)
        && g.dim as u64 * g.hidden as u64 * g.depth as u64 <= 1 << 34
}

pub(super) fn read_header(file: &mut File, path: &Path) -> Result<(Header, usize), WeightsError> {
    let mut fixed = [0; 16];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut fixed))
        .map_err(|e| malformed(path, format!("its header is cut short ({e})")))?;
    let word =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    if fixed[..8] != MAGIC {
        return Err(malformed(path, "it does not start as one".into()));
    }
    if word(8) != VERSION {
        return Err(malformed(
            path,
            format!(
                "it has format version {}, this fledge reads {VERSION}",
                word(8)
            ),
        ));
    }
    let length = word(12) as usize;
    if length > MAX_HEADER {
        return Err(malformed(path, "its header length is absurd".into()));
    }
    let mut encoded = vec![0; length];
    file.read_exact(&mut encoded)
        .map_err(|e| malformed(path, format!("its header is cut short ({e})")))?;
    let header: Header = postcard::from_bytes(&encoded)
        .map_err(|e| malformed(path, format!("its header cannot be decoded ({e})")))?;
    if !plausible(&header.geometry) {
        return Err(malformed(path, "its geometry is absurd".into()));
    }
    Ok((header, (fixed.len() + length).next_multiple_of(ALIGNMENT)))
}
