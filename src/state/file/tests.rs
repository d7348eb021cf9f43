use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn what_was_written_is_read_back() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    let value = vec![1.5f32, -2.0];
    let (bytes, revision) = write(&path, &value, Revision::NONE).unwrap();
    assert_eq!(bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(read::<Vec<f32>>(&path).unwrap(), (value, revision));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    write(&path, &vec![7u8; 40], Revision::NONE).unwrap();
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut torn = whole.clone();
        torn[at] ^= 1;
        fs::write(&path, &torn).unwrap();
        assert!(read::<Vec<u8>>(&path).is_err(), "flip at {at}");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(read::<Vec<u8>>(&path).is_err(), "cut at {at}");
    }
}

#[test]
fn a_file_changed_by_somebody_else_is_not_overwritten() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    let (_, mine) = write(&path, &1u32, Revision::NONE).unwrap();
    write(&path, &2u32, mine).unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(
        write(&path, &3u32, mine),
        Err(StateError::Changed { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[cfg(target_os = "linux")]
#[test]
fn a_pipe_is_not_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = folder();
    let path = folder.path().join("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let error = read::<u32>(&path).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    assert!(revision(&path).is_err());
}

#[test]
fn saving_through_a_link_keeps_the_link() {
    let folder = folder();
    let (file, link) = (
        folder.path().join("a.fledge"),
        folder.path().join("b.fledge"),
    );
    let (_, revision) = write(&file, &1u32, Revision::NONE).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    write(&link, &2u32, revision).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read::<u32>(&file).unwrap().0, 2);
}

#[test]
fn of_many_that_save_at_once_one_does() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    let (_, mut revision) = write(&path, &vec![0u32; 1 << 16], Revision::NONE).unwrap();
    for round in 1..20 {
        let saved: Vec<_> = std::thread::scope(|scope| {
            let save = |who: u32| write(&path, &vec![who; 1 << 16], revision);
            let others = [1, 2, 3].map(|who| scope.spawn(move || save(round * 4 + who)));
            others.map(|other| other.join().unwrap()).into()
        });
        let (saved, refused): (Vec<_>, Vec<_>) = saved.into_iter().partition(Result::is_ok);
        assert_eq!(saved.len(), 1, "round {round}");
        let changed = |e: &Result<_, _>| matches!(e, Err(StateError::Changed { .. }));
        assert!(refused.iter().all(changed));
        revision = super::revision(&path).unwrap();
    }
}

#[test]
fn a_link_to_a_drive_that_is_away_is_not_replaced() {
    let folder = folder();
    let (drive, link) = (folder.path().join("usb"), folder.path().join("b.fledge"));
    std::os::unix::fs::symlink("usb/a.fledge", &link).unwrap();
    for refused in [
        check_writable(&link),
        write(&link, &1u32, Revision::NONE).map(drop),
    ] {
        assert!(
            matches!(&refused, Err(StateError::NoFolder { folder, .. }) if *folder == drive),
            "{refused:?}"
        );
    }
    fs::create_dir(&drive).unwrap();
    write(&link, &1u32, Revision::NONE).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read::<u32>(&drive.join("a.fledge")).unwrap().0, 1);
}

#[test]
fn a_save_without_room_is_refused_before_the_work() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    check_room(&path, 1).unwrap();
    let refused = check_room(&path, u64::MAX);
    assert!(
        matches!(refused, Err(StateError::NoSpace { .. })),
        "{refused:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_with_a_mount_of_its_own_is_told_from_others() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    assert!(!is_mounted(&path));
    write(&path, &1u32, Revision::NONE).unwrap();
    assert!(!is_mounted(&path));
    // No file, but what is asked of the system is the same.
    assert!(is_mounted(Path::new("/proc")));
}

#[test]
fn what_was_left_half_written_is_gone_after_the_next_time() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    let left = folder.path().join(".a.fledge.saving-xyz");
    let other = folder.path().join(".b.fledge.saving-xyz");
    fs::write(&left, "half").unwrap();
    fs::write(&other, "half").unwrap();
    write(&path, &1u32, Revision::NONE).unwrap();
    assert!(!left.exists() && other.exists());
}

#[test]
fn an_older_or_newer_format_is_named_as_such() {
    let folder = folder();
    let path = folder.path().join("a.fledge");
    write(&path, &1u32, Revision::NONE).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 200;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        read::<u32>(&path),
        Err(StateError::Newer { found: 200, .. })
    ));
    bytes[8] = 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(
        read::<u32>(&path),
        Err(StateError::Older { found: 1, .. })
    ));
}
