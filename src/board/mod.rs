//! The machine fledge runs on: which board it is, how warm it is, and how much memory it may take.
//!
//! Everything is read from the files the kernel shows below `/proc` and `/sys`, so a folder with
//! the same files stands in for a board in the tests.

mod memory;
mod thermal;

use std::fs;
use std::path::{Path, PathBuf};

pub use memory::{MemoryLimit, TooLittleMemory};
pub use thermal::{Ceiling, Cooled, Thermometer};

/// A machine, by the root of its file system.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine this process runs on.
    pub fn here() -> Self {
        Self::at(Path::new("/"))
    }

    /// The machine whose `/proc` and `/sys` are found below `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// What the device tree calls the board, such as "Raspberry Pi 4 Model B Rev 1.4"; `None` on
    /// machines without a device tree, PCs for example.
    pub fn device_tree_model(&self) -> Option<String> {
        [
            "proc/device-tree/model",
            "sys/firmware/devicetree/base/model",
        ]
        .iter()
        .find_map(|path| fs::read(self.root.join(path)).ok())
        .map(|model| {
            // Device tree strings end with a zero byte.
            let model = model.split(|&byte| byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(model).trim().to_owned()
        })
        .filter(|model| !model.is_empty())
    }

    /// The sensors of the processor.
    pub fn thermometer(&self) -> Thermometer {
        Thermometer::find(&self.root.join("sys/class/thermal"))
    }

    /// The bound on this process's address space, `ulimit -v`.
    pub fn address_space_limit(&self) -> Option<MemoryLimit> {
        memory::address_space(&self.root)
    }

    /// The tightest bound on this process's memory; `None` where nothing bounds it.
    pub fn memory_limit(&self) -> Option<MemoryLimit> {
        memory::tightest(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_named_by_its_device_tree() {
        for place in ["proc/device-tree", "sys/firmware/devicetree/base"] {
            let root = tempfile::tempdir().unwrap();
            let machine = Machine::at(root.path());
            assert_eq!(machine.device_tree_model(), None);
            fs::create_dir_all(root.path().join(place)).unwrap();
            let model = root.path().join(place).join("model");
            fs::write(&model, b"Raspberry Pi 4 Model B Rev 1.4\0").unwrap();
            assert_eq!(
                machine.device_tree_model().as_deref(),
                Some("Raspberry Pi 4 Model B Rev 1.4")
            );
            fs::write(&model, b"\0").unwrap();
            assert_eq!(machine.device_tree_model(), None);
        }
    }
}
