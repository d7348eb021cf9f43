//! The boards fledge knows: `firmware-config/*.toml`, built in.

/// The key under which a board's file says which device trees it is for.
pub const DEVICE_TREE: &str = "device_tree";

/// A board's configuration file.
#[derive(Debug)]
pub struct Board {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! boards {
    ($($name:literal),* $(,)?) => {
        [$(Board {
            name: $name,
            text: include_str!(concat!("../../../firmware-config/", $name, ".toml")),
        }),*]
    };
}

pub static BOARDS: [Board; 6] = boards![
    "pi-zero-2-w",
    "pi-3",
    "pi-4",
    "pi-5",
    "jetson-nano",
    "jetson-orin-nano",
];

/// The board whose device tree calls it `model`.
pub fn find(model: &str) -> Option<&'static Board> {
    BOARDS.iter().find(|board| {
        board
            .device_trees()
            .iter()
            .any(|name| model.starts_with(name))
    })
}

impl Board {
    /// How the names of its device trees begin.
    fn device_trees(&self) -> Vec<String> {
        let table: toml::Table = self.text.parse().unwrap_or_default();
        let names = table.get(DEVICE_TREE).and_then(toml::Value::as_array);
        names
            .into_iter()
            .flatten()
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_found_by_the_name_in_its_device_tree() {
        for (model, name) in [
            ("Raspberry Pi Zero 2 W Rev 1.0", Some("pi-zero-2-w")),
            ("Raspberry Pi 3 Model B Plus Rev 1.3", Some("pi-3")),
            ("Raspberry Pi 4 Model B Rev 1.4", Some("pi-4")),
            ("Raspberry Pi 400 Rev 1.0", Some("pi-4")),
            ("Raspberry Pi Compute Module 4 Rev 1.0", Some("pi-4")),
            ("Raspberry Pi 5 Model B Rev 1.0", Some("pi-5")),
            ("Raspberry Pi 500 Rev 1.0", Some("pi-5")),
            ("NVIDIA Jetson Nano Developer Kit", Some("jetson-nano")),
            (
                "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                Some("jetson-orin-nano"),
            ),
            ("NVIDIA Orin Nano Developer Kit", Some("jetson-orin-nano")),
            ("Raspberry Pi Model B Rev 2", None),
            ("Some other board", None),
        ] {
            assert_eq!(find(model).map(|board| board.name), name, "{model}");
        }
    }
}
