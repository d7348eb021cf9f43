//! The command line is a contract that other tools call: these tests run the built program.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `fledge`, with no state file and no models of the person who runs the tests.
fn fledge(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, folder: &Path) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_fledge")), arguments, folder)
}

fn program(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    folder: &Path,
) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env_remove("FLEDGE_STATE")
        .env("FLEDGE_HOME", folder.join("home"))
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fledge(arguments, folder.path()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_lists_every_command_and_succeeds() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "model", "learn", "score", "classify", "watch", "forget", "state", "config", "demo",
    ] {
        assert!(
            stdout(&output).contains(command),
            "{command} is not in the help"
        );
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn every_command_has_help_with_its_flags() {
    let flags: [(&[&str], &[&str]); 10] = [
        (&["model", "get"], &["--from"]),
        (&["model", "check"], &["--json", "FILE.onnx"]),
        (
            &["learn"],
            &[
                "--task",
                "--state",
                "--model",
                "--resolution",
                "--adapt-blocks",
                "--rank",
                "--epochs",
                "--instant",
                "--seed",
                "--threads",
                "--json",
            ],
        ),
        (&["score"], &["--task", "--state", "--reject", "--json"]),
        (
            &["classify"],
            &["IMAGE", "--state", "--top", "--reject", "--json"],
        ),
        (&["forget"], &["--class", "--task", "--state", "--json"]),
        (&["state", "show"], &["--state", "--json", "learned.fledge"]),
        (
            &["watch"],
            &["--camera", "--state", "--frames", "--every", "--json"],
        ),
        (
            &["config", "show"],
            &["--config", "FLEDGE_CONFIG", "--json"],
        ),
        (&["demo"], &["--keep"]),
    ];
    for (command, flags) in flags {
        let output = run(&[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        for flag in flags {
            assert!(
                stdout(&output).contains(flag),
                "{flag} is not in the help of {command:?}"
            );
        }
    }
}

#[test]
fn the_version_is_the_crate_s() {
    let output = run(&["--version"]);
    assert_eq!(
        stdout(&output),
        format!("fledge {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn bad_usage_exits_with_2_and_leaves_stdout_alone() {
    let wrong: [&[&str]; 20] = [
        &[],
        &["fly"],
        &["learn"],
        &["learn", "--task", ".", "--wings", "2"],
        &["learn", "--task", ".", "--resolution", "0"],
        &["learn", "--task", ".", "--adapt-blocks", "some"],
        &["learn", "--task", ".", "--rank", "65"],
        &["learn", "--task", ".", "--epochs", "-1"],
        &["learn", "--task", ".", "--threads", "0"],
        &["learn", "--task", ".", "--threads", "257"],
        &["plan", "--resolution", "1025"],
        &["plan", "--classes", "99999999999"],
        &["learn", "--task", ".", "--seed", "first"],
        &["classify"],
        &["classify", "a.jpg", "--top", "0"],
        &["classify", "a.jpg", "--reject", "5"],
        &["forget"],
        &["forget", "--task", "0"],
        &["forget", "--task", "1", "--class", "robin"],
        &["state"],
    ];
    for arguments in wrong {
        let output = run(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(
            stderr(&output).contains("--help") || stderr(&output).contains("Usage:"),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_failure_exits_with_1_says_why_and_prints_no_json() {
    let failing: [&[&str]; 5] = [
        &["learn", "--task", "no-such-folder", "--json"],
        &["score", "--task", "no-such-folder", "--json"],
        &["classify", "no-such-photo.jpg", "--json"],
        &["forget", "--class", "robin", "--json"],
        &["state", "show", "--json"],
    ];
    for arguments in failing {
        let output = run(arguments);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            stdout(&output)
        );
        assert!(
            stderr(&output).starts_with("error: "),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            !stderr(&output).contains("panicked"),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_missing_task_folder_is_named() {
    let output = run(&["learn", "--task", "brids"]);
    assert!(stderr(&output).contains("brids"), "{}", stderr(&output));
}

#[test]
fn a_task_that_is_a_file_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("robin.jpg"), b"").unwrap();
    let output = fledge(["learn", "--task", "robin.jpg"], folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("one folder of photos a class"),
        "{}",
        stderr(&output)
    );
}

#[cfg(unix)]
#[test]
fn a_link_named_learn_behaves_as_fledge_learn() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("learn");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fledge"), &link).unwrap();
    for arguments in [
        vec!["--help"],
        vec!["--task", "no-such-folder"],
        vec!["--wings"],
    ] {
        let linked = program(&link, &arguments, folder.path()).output().unwrap();
        let mut full = vec!["learn"];
        full.extend(&arguments);
        let direct = fledge(full, folder.path()).output().unwrap();
        assert_eq!(linked, direct, "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn names_that_are_not_unicode_reach_the_command() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"br\xffds");
    let output = fledge(
        [OsStr::new("learn"), OsStr::new("--task"), name],
        folder.path(),
    )
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn the_environment_may_name_the_state_file() {
    let folder = tempfile::tempdir().unwrap();
    let help = fledge(["state", "show", "--help"], folder.path())
        .env("FLEDGE_STATE", "elsewhere.fledge")
        .output()
        .unwrap();
    assert!(
        stdout(&help).contains("FLEDGE_STATE=elsewhere.fledge"),
        "{}",
        stdout(&help)
    );
    for variable in ["FLEDGE_STATE", "FLEDGE_CONFIG"] {
        let empty = fledge(["state", "show"], folder.path())
            .env(variable, "")
            .output()
            .unwrap();
        assert_eq!(empty.status.code(), Some(2));
        assert!(
            stderr(&empty).contains("unset the environment variable"),
            "{}",
            stderr(&empty)
        );
    }
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    // The demonstration speaks before it needs a model, so it stops here at its first line.
    for arguments in [["learn", "--help"].as_slice(), &["demo"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = fledge(arguments, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut complaint = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut complaint)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
        assert_eq!(complaint, "", "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = fledge(["demo"], folder.path())
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot write the result"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_demonstration_does_not_touch_a_story_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("birds.fledge"), b"learned before").unwrap();
    let output = fledge(["demo", "--keep", "kept"], folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("birds.fledge"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        std::fs::read(kept.join("birds.fledge")).unwrap(),
        b"learned before"
    );
}
