//! Which images of a class are held back for validation.
//!
//! Every image draws a number from a hash of the seed, its class and its file name, and the lowest
//! numbers are held back. So the split does not depend on the order of the folder or on the other
//! classes, stays the same on every machine, and moves few images when some are added.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Part of a class that is held back unless asked otherwise.
pub const DEFAULT_FRACTION: f64 = 0.1;

/// Indices into one class's images, ascending; together they cover the class once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    pub training: Vec<usize>,
    pub validation: Vec<usize>,
}

/// Splits the images of one class; only the file names of `images` count, not their folders.
///
/// `fraction` of the images, rounded, is held back for validation, but of two images or more at
/// least one goes to either side, and of eight or more at least two are held back, for a few classes
/// have to tell what is unknown. A single image is for training, and so are all when `fraction` is not
/// above 0.
pub fn split_class(class: &str, images: &[PathBuf], seed: u64, fraction: f64) -> Split {
    let mut draw: Vec<(u64, &[u8], usize)> = images
        .iter()
        .enumerate()
        .map(|(index, path)| {
            let name = file_name(path);
            (number(seed, class, name), name, index)
        })
        .collect();
    draw.sort_unstable();
    let held_back = validation_size(images.len(), fraction);
    let indices = |part: &[(u64, &[u8], usize)]| {
        let mut indices: Vec<usize> = part.iter().map(|&(_, _, index)| index).collect();
        indices.sort_unstable();
        indices
    };
    Split {
        validation: indices(&draw[..held_back]),
        training: indices(&draw[held_back..]),
    }
}

fn validation_size(images: usize, fraction: f64) -> usize {
    if images < 2 || fraction.is_nan() || fraction <= 0.0 {
        return 0;
    }
    let least = if images < 8 { 1 } else { 2 };
    ((images as f64 * fraction).round() as usize).clamp(least, images - 1)
}

fn file_name(path: &Path) -> &[u8] {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .as_encoded_bytes()
}

/// The length of the class name goes in too, so that no two pairs of names run together alike.
fn number(seed: u64, class: &str, name: &[u8]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update((class.len() as u64).to_le_bytes());
    hasher.update(class.as_bytes());
    hasher.update(name);
    let digest: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes(std::array::from_fn(|k| digest[k]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photos(count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|k| PathBuf::from(format!("wren/{k:03}.jpg")))
            .collect()
    }

    fn held_back<'a>(split: &Split, images: &'a [PathBuf]) -> Vec<&'a PathBuf> {
        let mut names: Vec<_> = split.validation.iter().map(|&k| &images[k]).collect();
        names.sort();
        names
    }

    #[test]
    fn every_image_is_on_one_side_and_the_sizes_follow_the_fraction() {
        for (count, validation) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 1),
            (5, 1),
            (7, 1),
            (8, 2),
            (19, 2),
            (30, 3),
        ] {
            let split = split_class("wren", &photos(count), 1, DEFAULT_FRACTION);
            assert_eq!(split.validation.len(), validation, "of {count}");
            let mut all = [split.training, split.validation].concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn extreme_fractions_leave_something_to_train_on() {
        let count = |fraction| {
            split_class("wren", &photos(4), 1, fraction)
                .validation
                .len()
        };
        assert_eq!(count(1.0), 3);
        assert_eq!(count(f64::INFINITY), 3);
        assert_eq!(count(1e-9), 1);
        assert_eq!(count(0.0), 0);
        assert_eq!(count(-1.0), 0);
        assert_eq!(count(f64::NAN), 0);
    }

    #[test]
    fn the_split_does_not_depend_on_the_order_of_the_folder() {
        let images = photos(20);
        let mut turned = images.clone();
        turned.reverse();
        turned.rotate_left(7);
        assert_eq!(
            held_back(&split_class("wren", &images, 7, 0.2), &images),
            held_back(&split_class("wren", &turned, 7, 0.2), &turned),
        );
    }

    #[test]
    fn seed_and_class_change_the_split() {
        let images = photos(40);
        let split = split_class("wren", &images, 1, 0.2);
        assert_ne!(split, split_class("wren", &images, 2, 0.2));
        assert_ne!(split, split_class("robin", &images, 1, 0.2));
    }

    #[test]
    fn the_split_is_the_same_on_every_machine() {
        // Computed once; a change here would shuffle the validation part of every user's task.
        let split = split_class("wren", &photos(10), 42, 0.2);
        assert_eq!(split.validation, [1, 5]);
    }
}
