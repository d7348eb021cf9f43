//! A folder to learn in, with a small ViT of random weights, and the built program to run there.

// Each test file uses the part it needs.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use fledge::state::Knowledge;
use serde_json::Value;

/// A home with the small ViT imported, and a folder for tasks and state.
pub struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        scene.import("timm_vit_opset14", "small");
        scene
    }

    pub fn import(&self, fixture: &str, name: &str) {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
        let onnx = self.path(&format!("{name}.onnx"));
        fs::copy(fixtures.join(format!("{fixture}.onnx")), &onnx).unwrap();
        let output = self.run(&["model", "get", "--from", onnx.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// Starts the program without waiting for its end.
    pub fn start(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_fledge"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("FLEDGE_STATE")
            .env_remove("FLEDGE_CONFIG")
            .env("FLEDGE_HOME", self.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Learns a task with the small model and returns the JSON it prints.
    pub fn learn(&self, task: &str, more: &[&str]) -> Value {
        let mut arguments = vec!["learn", "--task", task, "--json"];
        if !self.path("learned.fledge").exists() {
            arguments.extend([
                "--model",
                "small",
                "--resolution",
                "28",
                "--adapt-blocks",
                "1",
            ]);
        }
        arguments.extend(more);
        let output = self.run(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What the state file holds.
    pub fn knowledge(&self) -> Knowledge {
        fledge::state::read(&self.path("learned.fledge")).unwrap().0
    }

    pub fn accuracy(&self, task: &str) -> f64 {
        let output = self.run(&["score", "--task", task, "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["accuracy"].as_f64().unwrap()
    }

    /// Writes `images` pictures of one class: stripes of a colour and a width, placed at random.
    pub fn draw(&self, task: &str, class: &str, colour: [u8; 3], stripe: u32, images: u32) {
        let folder = self.path(task).join(class);
        fs::create_dir_all(&folder).unwrap();
        for index in 0..images {
            let shade = 30 + (index * 37 % 50) as u8;
            let picture =
                image::RgbImage::from_fn(40, 32, |x, y| match (x + index * 5) / stripe % 2 {
                    0 => image::Rgb(colour),
                    _ => image::Rgb([shade, shade + (y % 7) as u8, shade]),
                });
            picture
                .save(folder.join(format!("{index:02}.png")))
                .unwrap();
        }
    }

    pub fn draw_birds(&self) {
        self.draw("birds", "robin", [220, 60, 30], 5, 12);
        self.draw("birds", "sparrow", [130, 100, 60], 9, 12);
        self.draw("birds", "tit", [60, 120, 230], 7, 12);
    }

    pub fn draw_fish(&self) {
        self.draw("fish", "trout", [40, 200, 160], 4, 10);
        self.draw("fish", "goldfish", [250, 180, 20], 11, 10);
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
