//! Task folders as users have them: odd names, stray files, links, and nothing at all.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fledge::data::{FolderError, SkipReason, TaskFolder, split_class};
use tempfile::TempDir;

/// The start of a PNG; scanning looks no further.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

/// A folder `birds` with these files; a path that ends in `/` is a folder.
fn birds(entries: &[&[u8]]) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let task = root.path().join("birds");
    fs::create_dir(&task).unwrap();
    for entry in entries {
        let path = task.join(OsStr::from_bytes(entry));
        if entry.ends_with(b"/") {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }
    (root, task)
}

fn class_names(task: &TaskFolder) -> Vec<&str> {
    task.classes
        .iter()
        .map(|class| class.name.as_str())
        .collect()
}

fn skipped<'a>(task: &'a TaskFolder, path: &Path) -> Option<&'a SkipReason> {
    task.skipped
        .iter()
        .find(|skipped| skipped.path == path)
        .map(|skipped| &skipped.reason)
}

#[test]
fn classes_and_images_come_in_the_order_of_their_bytes() {
    let (_root, path) = birds(&[b"wren/b.jpg", b"wren/a.JPG", b"wren/B.png", b"Robin/1.jpeg"]);
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), ["Robin", "wren"]);
    let names: Vec<_> = task.classes[1]
        .images
        .iter()
        .map(|image| image.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["B.png", "a.JPG", "b.jpg"]);
    assert_eq!((task.images(), task.skipped.len()), (4, 0));
}

#[test]
fn the_task_is_named_after_its_folder_however_it_is_given() {
    let (_root, path) = birds(&[b"wren/1.jpg"]);
    let name = |path: PathBuf| TaskFolder::scan(&path).unwrap().name;
    assert_eq!(name(path.clone()), "birds");
    assert_eq!(name(path.join("")), "birds");
    assert_eq!(name(path.join(".")), "birds");
    assert_eq!(name(path.join("wren/..")), "birds");
    assert!(matches!(
        TaskFolder::scan(Path::new("/")),
        Err(_) | Ok(TaskFolder { .. })
    ));
}

#[test]
fn names_that_differ_in_case_or_blanks_are_different_classes() {
    let (_root, path) = birds(&[b"wren/1.jpg", b"Wren/1.jpg", b"wren /1.jpg", b" wren/1.jpg"]);
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), [" wren", "Wren", "wren", "wren "]);
}

#[test]
fn names_that_are_not_utf8_are_used_and_written_without_loss() {
    let (_root, path) = birds(&[b"caf\xe9\\x/photo\xff.jpg", b"caf\xc3\xa9\\x/1.jpg"]);
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), ["café\\x", r"caf\xe9\\x"]);
    let image = &task.classes[1].images[0];
    assert!(image.is_file() && image.as_os_str().as_bytes().ends_with(b"photo\xff.jpg"));
    let class = &task.classes[1];
    let split = split_class(&class.name, &class.images, 1, 0.2);
    assert_eq!(split.training, [0]);
}

#[test]
fn two_folders_whose_names_read_the_same_are_not_mixed() {
    let (_root, path) = birds(&[b"caf\\xe9/1.jpg", b"caf\xe9/1.jpg"]);
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), [r"caf\xe9"]);
    assert!(matches!(task.skipped[0].reason, SkipReason::SameName(_)));
}

#[test]
fn the_usable_part_is_taken_and_the_rest_is_named_with_its_reason() {
    let (_root, path) = birds(&[
        b"wren/1.jpg",
        b"wren/notes.md",
        b"wren/more/2.jpg",
        b"wren/.hidden.jpg",
        b".git/x.jpg",
        b".DS_Store",
        b"empty/",
        b"text/readme",
        b"stray.png",
        b"README.txt",
    ]);
    fs::write(path.join("wren/no-extension"), PNG).unwrap();
    fs::write(path.join("wren/photo.backup"), PNG).unwrap();
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), ["wren"]);
    assert_eq!(task.images(), 3);
    let reason = |name: &str| skipped(&task, &path.join(name));
    assert_eq!(reason("wren/notes.md"), Some(&SkipReason::NotAnImage));
    assert_eq!(reason("wren/more"), Some(&SkipReason::FolderInClass));
    assert_eq!(reason("empty"), Some(&SkipReason::EmptyClass));
    assert_eq!(reason("text"), Some(&SkipReason::EmptyClass));
    assert_eq!(reason("text/readme"), Some(&SkipReason::NotAnImage));
    assert_eq!(reason("stray.png"), Some(&SkipReason::OutsideClasses));
    assert_eq!(reason("README.txt"), Some(&SkipReason::NotAnImage));
    assert_eq!(task.skipped.len(), 7);
    let losses = task
        .skipped
        .iter()
        .filter(|skipped| skipped.reason.is_loss());
    assert_eq!(losses.count(), 4);
}

#[test]
fn links_are_followed_and_loops_end() {
    let (root, path) = birds(&[b"wren/1.jpg"]);
    let elsewhere = root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(path.join("wren/1.jpg"), elsewhere.join("linked.jpg")).unwrap();
    symlink(&elsewhere, path.join("robin")).unwrap();
    symlink("..", path.join("wren/up")).unwrap();
    symlink(".", path.join("self")).unwrap();
    symlink("dangling", path.join("wren/gone.jpg")).unwrap();
    symlink("turn.jpg", path.join("wren/turn.jpg")).unwrap();
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(class_names(&task), ["robin", "wren"]);
    assert_eq!(task.images(), 2);
    let reason = |name: &str| skipped(&task, &path.join(name));
    assert_eq!(reason("wren/up"), Some(&SkipReason::FolderInClass));
    assert_eq!(reason("self"), Some(&SkipReason::EmptyClass));
    for link in ["wren/gone.jpg", "wren/turn.jpg"] {
        assert!(matches!(reason(link), Some(SkipReason::Unreadable(_))));
    }
}

#[test]
fn a_socket_or_pipe_is_not_waited_for() {
    let (_root, path) = birds(&[b"wren/1.jpg"]);
    let _socket = std::os::unix::net::UnixListener::bind(path.join("wren/2.jpg")).unwrap();
    let task = TaskFolder::scan(&path).unwrap();
    assert_eq!(
        skipped(&task, &path.join("wren/2.jpg")),
        Some(&SkipReason::Special)
    );
}

#[test]
fn what_is_no_task_folder_is_told_what_one_looks_like() {
    let (_root, path) = birds(&[b"stray.jpg"]);
    let message = |path: &Path| {
        let error = TaskFolder::scan(path).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("birds/robin/1.jpg"), "{message}");
        (error, message)
    };
    assert!(matches!(
        message(&path.join("missing")).0,
        FolderError::Missing(_)
    ));
    assert!(matches!(
        message(&path.join("stray.jpg")).0,
        FolderError::NotAFolder(_)
    ));
    assert!(matches!(
        message(&path.join("stray.jpg/x")).0,
        FolderError::NotAFolder(_)
    ));
    let (error, text) = message(&path);
    assert!(matches!(error, FolderError::NoClasses { .. }));
    assert!(
        text.contains("stray.jpg lies beside the class folders"),
        "{text}"
    );
    fs::remove_file(path.join("stray.jpg")).unwrap();
    assert!(matches!(message(&path).0, FolderError::NoClasses { .. }));
    fs::create_dir(path.join("wren")).unwrap();
    assert!(message(&path).1.contains("wren holds no image"));
}
