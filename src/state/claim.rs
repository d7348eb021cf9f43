//! One change at a time: who learns or forgets claims the state file first.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::file::{StateError, open_regular};

/// Turns others away who would change a state file, until it is dropped. Readers need none.
#[derive(Debug)]
#[must_use = "the claim ends when it is dropped"]
pub struct Claim {
    /// Locked. A save puts another file in its place, which is free to be claimed.
    _file: Option<File>,
}

/// Claims the state file at `path` before it is read for a change. Without a claim two that learn at a time
/// both work for minutes, and [`write()`](super::write()) refuses the later one what it has learned.
///
/// Nothing is claimed where there is no file yet or the file system has no locks; `write` still notices
/// another's change then.
///
/// # Errors
/// [`StateError::Busy`] when another process, or another part of this one, has claimed it.
pub fn claim(path: &Path) -> Result<Claim, StateError> {
    // What cannot be opened is told by whoever reads it next.
    let file = open_regular(path).ok();
    match file.as_ref().map(File::try_lock) {
        Some(Err(TryLockError::WouldBlock)) => Err(StateError::Busy {
            path: path.to_owned(),
        }),
        Some(Ok(()) | Err(TryLockError::Error(_))) | None => Ok(Claim { _file: file }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Revision, write};
    use super::*;

    #[test]
    fn a_state_is_claimed_once_until_it_is_let_go_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.fledge");
        // Nothing is there to be claimed.
        let (_first, _second) = (claim(&path).unwrap(), claim(&path).unwrap());
        let (_, revision) = write(&path, &1, Revision::NONE).unwrap();
        let mine = claim(&path).unwrap();
        let refused = claim(&path).unwrap_err();
        assert!(matches!(refused, StateError::Busy { .. }), "{refused}");
        drop(mine);
        let mine = claim(&path).unwrap();
        write(&path, &2, revision).unwrap();
        let _next = claim(&path).unwrap();
        drop(mine);
        assert!(claim(&path).is_err());
    }
}
