//! What the machine's owner sets and runs: configuration, and a camera watched by a service.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A home with the small ViT, and a state that knows two classes.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn learned() -> Self {
        let scene = Self::empty();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
        fs::copy(
            fixtures.join("timm_vit_opset14.onnx"),
            scene.path("small.onnx"),
        )
        .unwrap();
        scene.done(&["model", "get", "--from", "small.onnx"]);
        for (class, colour, stripe) in [("robin", [220, 60, 30], 5), ("tit", [60, 120, 230], 7)] {
            fs::create_dir_all(scene.path("birds").join(class)).unwrap();
            for index in 0..8 {
                let name = format!("birds/{class}/{index}.jpg");
                scene.draw(&name, colour, stripe, index);
            }
        }
        scene.done(&[
            "learn",
            "--task",
            "birds",
            "--model",
            "small",
            "--resolution",
            "28",
            "--adapt-blocks",
            "1",
            "--instant",
        ]);
        scene
    }

    fn draw(&self, name: &str, colour: [u8; 3], stripe: u32, shift: u32) {
        let picture = image::RgbImage::from_fn(40, 32, |x, _| match (x + shift * 5) / stripe % 2 {
            0 => image::Rgb(colour),
            _ => image::Rgb([40, 40, 40]),
        });
        // Written whole, under a name that a camera's folder leaves out.
        let hidden = self.path(".drawing.jpg");
        picture.save(&hidden).unwrap();
        fs::rename(hidden, self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fledge"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("FLEDGE_STATE")
            .env_remove("FLEDGE_CONFIG")
            .env_remove("NOTIFY_SOCKET")
            .env("FLEDGE_HOME", self.path("home"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn watch(&self, arguments: &[&str]) -> Watching {
        let mut child = self
            .command(&[&["watch", "--json"][..], arguments].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let said = BufReader::new(child.stderr.take().unwrap());
        Watching { child, lines, said }
    }
}

/// A watching process; ended with the test.
struct Watching {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    said: BufReader<std::process::ChildStderr>,
}

impl Watching {
    fn sighting(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }
}

impl Watching {
    /// Waits until a line of standard error has `part` in it.
    fn says(&mut self, part: &str) {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            let read = self.said.read_line(&mut line).unwrap();
            assert!(read > 0, "{part:?} was never said");
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn setting<'a>(report: &'a Value, key: &str) -> &'a Value {
    let settings = report["settings"].as_array().unwrap();
    settings.iter().find(|s| s["key"] == key).unwrap()
}

#[test]
fn the_configuration_says_what_holds_and_where_it_comes_from() {
    let scene = Scene::empty();
    fs::write(
        scene.path("fledge.toml"),
        "threads = 3\nstate = \"kept.fledge\"",
    )
    .unwrap();
    let shown = scene
        .command(&["config", "show", "--json"])
        .env("FLEDGE_CONFIG", scene.path("fledge.toml"))
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(setting(&report, "threads")["value"], "3");
    let origin = setting(&report, "threads")["origin"].as_str().unwrap();
    assert!(origin.ends_with("fledge.toml"), "{origin}");
    assert_eq!(
        setting(&report, "home")["origin"],
        "environment FLEDGE_HOME"
    );
    let state = setting(&report, "state")["value"].as_str().unwrap();
    assert!(state.ends_with("kept.fledge"), "{state}");

    // The flag wins over the environment's file.
    fs::write(scene.path("other.toml"), "threads = 5").unwrap();
    let shown = scene
        .command(&["config", "show", "--json", "--config", "other.toml"])
        .env("FLEDGE_CONFIG", scene.path("fledge.toml"))
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(setting(&report, "threads")["value"], "5");
    assert!(setting(&report, "state")["value"] == "./learned.fledge");
}

#[test]
fn a_wrong_key_ends_every_command_with_the_nearest_right_one() {
    let scene = Scene::empty();
    fs::write(scene.path("fledge.toml"), "resolutoin = 112").unwrap();
    let output = scene.run(&["--config", "fledge.toml", "state", "show"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("did you mean \"resolution\""), "{told}");
}

#[test]
fn a_configured_resolution_begins_a_state_and_does_not_stop_one_that_exists() {
    let scene = Scene::learned();
    let configured = "model = \"small\"\nresolution = 56\nadapt_blocks = 1\nstate = \"new.fledge\"";
    fs::write(scene.path("fledge.toml"), configured).unwrap();
    let learn = [
        "--config",
        "fledge.toml",
        "learn",
        "--task",
        "birds",
        "--instant",
    ];
    scene.done(&learn);
    let shown = scene.done(&["state", "show", "--json", "--state", "new.fledge"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["resolution"], 56);
    scene.done(&[&learn[..], &["--state", "learned.fledge"]].concat());
    let refused = scene.run(&[&learn[..], &["--resolution", "28"]].concat());
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_folder_is_watched_and_a_picture_that_is_none_does_not_end_it() {
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    scene.draw("frames/a.jpg", [220, 60, 30], 5, 2);
    let mut watching = scene.watch(&["--camera", "dir:frames", "--frames", "3"]);
    let first = watching.sighting();
    assert_eq!(
        (&first["label"], &first["frame"]),
        (&"robin".into(), &1.into())
    );
    assert!(first["image"].as_str().unwrap().ends_with("a.jpg"));
    fs::write(scene.path(".b"), "no picture").unwrap();
    fs::rename(scene.path(".b"), scene.path("frames/b.jpg")).unwrap();
    let error = watching.sighting();
    assert!(
        error["error"].as_str().unwrap().contains("b.jpg"),
        "{error}"
    );
    scene.draw("frames/c.jpg", [60, 120, 230], 7, 3);
    assert_eq!(watching.sighting()["label"], "tit");
    assert!(watching.child.wait().unwrap().success());
}

#[test]
fn what_is_forgotten_while_it_watches_is_not_seen_again() {
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    scene.draw("frames/a.jpg", [220, 60, 30], 5, 2);
    let watch = ["--camera", "dir:frames", "--frames", "2", "--reject", "0"];
    let mut watching = scene.watch(&watch);
    assert_eq!(watching.sighting()["label"], "robin");
    scene.done(&["forget", "--class", "robin"]);
    scene.draw("frames/b.jpg", [220, 60, 30], 5, 3);
    let second = watching.sighting();
    assert_eq!(
        (&second["label"], &second["frame"]),
        (&"tit".into(), &2.into())
    );
    assert!(watching.child.wait().unwrap().success());
}

#[test]
fn without_anything_known_it_waits_until_something_is_learned() {
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    scene.draw("frames/a.jpg", [220, 60, 30], 5, 2);
    let mut watching = scene.watch(&["--camera", "dir:frames", "--frames", "2"]);
    assert_eq!(watching.sighting()["label"], "robin");
    let state = fs::read(scene.path("learned.fledge")).unwrap();
    scene.done(&["forget", "--task", "1"]);
    scene.draw("frames/b.jpg", [220, 60, 30], 5, 3);
    watching.says("nothing has been learned yet");
    // A copy that is not yet whole is no reason to stop either.
    fs::write(scene.path("learned.fledge"), &state[..state.len() / 2]).unwrap();
    watching.says("cut short");
    fs::write(scene.path("learned.fledge"), &state).unwrap();
    let second = watching.sighting();
    assert_eq!(
        (&second["label"], &second["frame"]),
        (&"robin".into(), &2.into())
    );
    assert!(watching.child.wait().unwrap().success());
}

#[test]
fn with_wait_a_first_task_is_waited_for() {
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    let (state, away) = (scene.path("learned.fledge"), scene.path("away"));
    fs::rename(&state, &away).unwrap();
    let watch = ["--camera", "dir:frames", "--frames", "1"];
    let mut ended = scene.watch(&watch);
    ended.says("no state file");
    assert_eq!(ended.child.wait().unwrap().code(), Some(1));
    let mut watching = scene.watch(&[&watch[..], &["--wait"]].concat());
    watching.says("no state file");
    fs::rename(&away, &state).unwrap();
    scene.draw("frames/a.jpg", [220, 60, 30], 5, 2);
    assert_eq!(watching.sighting()["label"], "robin");
    assert!(watching.child.wait().unwrap().success());
}

#[test]
fn a_picture_from_before_a_wait_is_not_told_as_what_is_seen_after_it() {
    let scene = Scene::learned();
    let state = fs::read(scene.path("learned.fledge")).unwrap();
    let [robin, tit] =
        ["robin", "tit"].map(|bird| fs::read(scene.path(&format!("birds/{bird}/0.jpg"))).unwrap());
    let mut watching = scene.watch(&["--camera", "-", "--reject", "0"]);
    let mut input = watching.child.stdin.take().unwrap();
    input.write_all(&robin).unwrap();
    assert_eq!(watching.sighting()["label"], "robin");
    scene.done(&["forget", "--task", "1"]);
    input.write_all(&robin).unwrap();
    watching.says("no answers until that changes");
    fs::write(scene.path("learned.fledge"), &state).unwrap();
    input.write_all(&tit).unwrap();
    drop(input);
    assert_eq!(watching.sighting()["label"], "tit");
}

#[test]
fn a_reader_that_leaves_early_is_a_failure_where_more_was_asked() {
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    scene.draw("frames/a.jpg", [220, 60, 30], 5, 2);
    for (more, code) in [(&["--frames", "9"][..], Some(1)), (&[], Some(0))] {
        let mut child = scene
            .command(&[&["watch", "--camera", "dir:frames"], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Nobody reads a single line.
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), code);
    }
}

#[test]
fn pictures_that_end_too_early_or_are_all_unusable_are_a_failure() {
    let scene = Scene::learned();
    let half = fs::read(scene.path("birds/tit/0.jpg")).unwrap();
    for (sent, more, why) in [
        (
            &half[..half.len() - 9],
            &[][..],
            "none of the camera's pictures",
        ),
        (&half, &["--frames", "2"], "ended after 1 of 2"),
    ] {
        let mut watching = scene.watch(&[&["--camera", "-"], more].concat());
        let mut input = watching.child.stdin.take().unwrap();
        input.write_all(sent).unwrap();
        drop(input);
        watching.says(why);
        assert_eq!(watching.child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn pictures_on_standard_input_are_watched_until_they_end() {
    let scene = Scene::learned();
    scene.draw("now.jpg", [60, 120, 230], 7, 1);
    let mut watching = scene.watch(&["--camera", "-"]);
    let mut input = watching.child.stdin.take().unwrap();
    let picture = fs::read(scene.path("now.jpg")).unwrap();
    input.write_all(&picture[..picture.len() - 9]).unwrap();
    input.write_all(&picture).unwrap();
    input.flush().unwrap();
    assert_eq!(watching.sighting()["label"], "tit");
    drop(input);
    assert!(watching.child.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_camera_program_that_ends_or_stays_silent_is_a_failure_that_says_so() {
    let scene = Scene::learned();
    let watch = ["watch", "--camera"];
    let output = scene.run(&[&watch[..], &["cmd:false"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("false ended"),
        "{}",
        text(&output.stderr)
    );
    let silent = ["cmd:sleep 600", "--patience", "300ms"];
    let output = scene.run(&[&watch[..], &silent].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no picture for 300ms"));
    // The service is not started again until somebody names one.
    let output = scene.run(&["watch"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no camera is configured"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_manager_hears_that_it_is_ready_alive_and_stopping() {
    use std::os::unix::net::UnixDatagram;
    let scene = Scene::learned();
    fs::create_dir(scene.path("frames")).unwrap();
    let socket = UnixDatagram::bind(scene.path("notify")).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .unwrap();
    let mut child = scene
        .command(&["watch", "--camera", "dir:frames"])
        .env("NOTIFY_SOCKET", scene.path("notify"))
        .env("WATCHDOG_USEC", "400000")
        .spawn()
        .unwrap();
    let heard = || {
        let mut message = [0; 512];
        let length = socket.recv(&mut message).unwrap();
        text(&message[..length]).trim().to_owned()
    };
    assert_eq!(heard(), "READY=1");
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(heard(), "WATCHDOG=1");
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    let last = loop {
        match heard() {
            alive if alive == "WATCHDOG=1" => {}
            other => break other,
        }
    };
    assert_eq!(last, "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn packages_get_a_page_for_every_command_and_completions_for_three_shells() {
    let scene = Scene::empty();
    scene.done(&["manual", "out"]);
    for file in [
        "man/fledge.1",
        "man/fledge-learn.1",
        "man/fledge-config-show.1",
        "completions/fledge.bash",
        "completions/_fledge",
        "completions/fledge.fish",
    ] {
        let text = fs::read_to_string(scene.path("out").join(file)).unwrap();
        assert!(text.contains("fledge"), "{file}");
    }
    assert!(
        !scene.path("out/man/fledge-manual.1").exists(),
        "it is for packagers"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_memory_limit_that_cannot_be_met_is_said_before_the_work() {
    let scene = Scene::learned();
    let classify = |kilobytes: u32, images: &str| {
        let program = env!("CARGO_BIN_EXE_fledge");
        let script = format!("ulimit -v {kilobytes}; exec {program} classify --json {images}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .current_dir(scene.folder.path())
            .env_remove("FLEDGE_CONFIG")
            .env("FLEDGE_HOME", scene.path("home"));
        command.output().unwrap()
    };
    // How much the program itself takes depends on how it was built: the first limit that does not do is looked for.
    let limits = (16..256).rev().step_by(2);
    let small = "birds/tit/0.jpg";
    let mut tried = limits.map(|mebibytes| classify(mebibytes << 10, small));
    let refused = tried.find(|output| !output.status.success()).unwrap();
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("ulimit -v"), "{told}");
    let wanted = told.split("raise the limit to ").nth(1).unwrap();
    let wanted: u32 = wanted.split(' ').next().unwrap().parse().unwrap();
    let met = classify(wanted << 10, small);
    assert!(met.status.success(), "{}", text(&met.stderr));

    // A picture that takes more than is left is named, and the other one's answer is not lost.
    let large = image::ImageBuffer::from_pixel(3000, 3000, image::Rgba([9u16, 9, 9, 9]));
    large.save(scene.path("large.png")).unwrap();
    let output = classify((wanted + 8) << 10, "large.png birds/tit/0.jpg");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = answers["images"][0]["error"].as_str().unwrap();
    assert!(error.contains("MiB to decode"), "{error}");
    assert_eq!(answers["images"][1]["label"], "tit");
}

#[test]
fn what_is_missing_decides_about_the_exit_code_where_nobody_reads_the_answer() {
    let scene = Scene::learned();
    for (image, code) in [("birds/tit/0.jpg", 0), ("birds/tit/none.jpg", 1)] {
        let mut child = scene
            .command(&["classify", image])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{image}");
    }
}
