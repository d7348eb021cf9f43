//! `fledge eval` through the built program, on a small ViT with random weights and drawn images.

mod scene;

use std::fs;
use std::io::Read;
use std::process::{Child, Command};

use serde_json::Value;

use scene::{Scene, text};

const METHODS: [&str; 10] = [
    "fm-lora",
    "frozen",
    "joint",
    "finetune",
    "lora",
    "sd-lora",
    "fm-lora-published",
    "regularised",
    "replay",
    "per-task",
];

/// Five classes to learn from and to be asked about, as `bench/train` and `bench/test`.
fn benchmark(scene: &Scene) {
    scene.draw_birds();
    scene.draw_fish();
    for (task, classes) in [
        ("birds", vec!["robin", "sparrow", "tit"]),
        ("fish", vec!["goldfish", "trout"]),
    ] {
        for class in classes {
            for part in ["train", "test"] {
                fs::create_dir_all(scene.path(&format!("bench/{part}/{class}"))).unwrap();
            }
            let images = fs::read_dir(scene.path(&format!("{task}/{class}"))).unwrap();
            let mut images: Vec<_> = images.map(|image| image.unwrap().path()).collect();
            images.sort();
            for (index, image) in images.iter().enumerate() {
                let part = if index % 3 == 0 { "test" } else { "train" };
                let name = image.file_name().unwrap().to_str().unwrap();
                let to = scene.path(&format!("bench/{part}/{class}/{name}"));
                fs::copy(image, to).unwrap();
            }
        }
    }
}

/// The same classes from two groups, with what other programs leave beside them, as `grouped/train/<group>/<class>`.
fn grouped(scene: &Scene) {
    benchmark(scene);
    for part in ["train", "test"] {
        for (group, classes) in [("day", ["robin", "tit"]), ("night", ["robin", "tit"])] {
            fs::create_dir_all(scene.path(&format!("grouped/{part}/{group}"))).unwrap();
            let note = scene.path(&format!("grouped/{part}/{group}/.DS_Store"));
            fs::write(note, "no picture").unwrap();
            for class in classes {
                let to = scene.path(&format!("grouped/{part}/{group}/{class}"));
                fs::create_dir_all(&to).unwrap();
                let from = scene.path(&format!("bench/{part}/{class}"));
                for image in fs::read_dir(from).unwrap() {
                    let image = image.unwrap();
                    fs::copy(image.path(), to.join(image.file_name())).unwrap();
                }
            }
        }
    }
}

fn eval(scene: &Scene, more: &[&str]) -> std::process::Output {
    let flags = [
        "eval",
        "--model",
        "small",
        "--resolution",
        "28",
        "--epochs",
        "1",
        "--threads",
        "2",
    ];
    scene.run(&[&flags[..], more].concat())
}

/// Reads a running program's stderr up to a line with `part` in it.
fn await_line(child: &mut Child, part: &str) -> String {
    let stderr = child.stderr.as_mut().unwrap();
    let mut told = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows the line stays in the pipe.
    while stderr.read(&mut byte).unwrap() == 1 {
        told.push(byte[0]);
        if byte[0] == b'\n' && text(&told).contains(part) {
            return text(&told);
        }
    }
    panic!("{part:?} was never said, but {}", text(&told));
}

fn report(scene: &Scene, more: &[&str]) -> Value {
    let output = eval(scene, more);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const CLASSES: [&str; 4] = ["--protocol", "class-incremental", "--data", "bench"];

#[test]
fn every_method_learns_the_sequence_and_reports_its_figures() {
    let scene = Scene::new();
    benchmark(&scene);
    let methods = METHODS.join(",");
    let flags = ["--tasks", "2", "--method", &methods, "--seeds", "1"];
    let report = report(&scene, &[&CLASSES[..], &flags, &["--json", "-"]].concat());
    assert_eq!(report["protocol"], "class-incremental");
    assert_eq!((&report["tasks"], &report["seeds"]), (&2.into(), &1.into()));
    assert_eq!(report["complete"], true);
    let found = report["methods"].as_object().unwrap();
    assert_eq!(found.len(), METHODS.len());
    for name in METHODS {
        let method = &found[name];
        for figure in [
            "acc",
            "acc_std",
            "forgetting",
            "parameters_per_task",
            "bytes_per_task",
            "seconds",
            "peak_training_bytes",
        ] {
            assert!(method[figure].is_number(), "{name}: {figure}");
        }
        let acc = method["acc"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&acc), "{name}: {acc}");
        let rows = method["matrix"].as_array().unwrap();
        assert_eq!(rows.len(), if name == "joint" { 1 } else { 2 }, "{name}");
        assert_eq!(rows[rows.len() - 1].as_array().unwrap().len(), 2);
        assert_eq!(method["aaa"].is_null(), name == "joint");
    }
    assert!(found["frozen"]["acc"].as_f64().unwrap() > 90.0);
    assert!(found["fm-lora"]["acc"].as_f64().unwrap() > 90.0);
    assert_eq!(found["frozen"]["parameters_per_task"], 0.0);
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = ["--tasks", "2", "--method", "fm-lora", "--seeds", "2"];
    let flags = [&CLASSES[..], &flags, &["--json", "-"]].concat();
    let (one, two) = (report(&scene, &flags), report(&scene, &flags));
    let matrices = |report: &Value| -> Vec<Value> {
        let runs = report["methods"]["fm-lora"]["runs"].as_array().unwrap();
        runs.iter().map(|run| run["matrix"].clone()).collect()
    };
    assert_eq!(matrices(&one), matrices(&two));
    assert_eq!(matrices(&one).len(), 2);
}

#[test]
fn finished_runs_are_kept_and_not_repeated() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = ["--tasks", "2", "--method", "frozen", "--json", "out.json"];
    let flags = [&CLASSES[..], &flags].concat();
    let read =
        || -> Value { serde_json::from_slice(&fs::read(scene.path("out.json")).unwrap()).unwrap() };
    assert!(
        eval(&scene, &[&flags[..], &["--seeds", "1"]].concat())
            .status
            .success()
    );
    let seconds = |seed: usize| read()["methods"]["frozen"]["runs"][seed]["seconds"].clone();
    let first = seconds(0);
    let resumed = [&flags[..], &["--seeds", "2", "--resume"]].concat();
    assert!(eval(&scene, &resumed).status.success());
    assert_eq!(seconds(0), first, "a finished run was made again");
    assert!(seconds(1).is_number());
    let other = eval(
        &scene,
        &[&flags[..], &["--order-seed", "7", "--resume"]].concat(),
    );
    assert_eq!(other.status.code(), Some(1));
    let told = text(&other.stderr);
    assert!(told.contains("order seed is 1993 and not 7"), "{told}");
    assert_eq!(seconds(0), first, "the report was lost");
}

#[test]
fn a_file_that_is_there_is_only_gone_on_from() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = ["--tasks", "2", "--method", "frozen", "--seeds", "1"];
    let flags = [&CLASSES[..], &flags, &["--json", "out.json"]].concat();
    let refused = |more: &[&str], why: &str| {
        let before = fs::read(scene.path("out.json")).ok();
        let output = eval(&scene, &[&flags[..], more].concat());
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stderr);
        assert!(told.contains("out.json") && told.contains(why), "{told}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        assert_eq!(fs::read(scene.path("out.json")).ok(), before);
    };
    assert!(eval(&scene, &flags).status.success());
    refused(&[], "1 finished run already; add --resume");
    assert!(
        eval(&scene, &[&flags[..], &["--resume"]].concat())
            .status
            .success()
    );
    for foreign in ["a diary", "{}"] {
        fs::write(scene.path("out.json"), foreign).unwrap();
        refused(&[], "is no report of an evaluation");
        refused(&["--resume"], "is no report of an evaluation");
    }
    fs::remove_file(scene.path("out.json")).unwrap();
    assert!(eval(&scene, &flags).status.success());
    let mut report: Value =
        serde_json::from_slice(&fs::read(scene.path("out.json")).unwrap()).unwrap();
    let rows = &mut report["methods"]["frozen"]["runs"][0]["matrix"];
    rows[1].as_array_mut().unwrap().pop();
    fs::write(scene.path("out.json"), report.to_string()).unwrap();
    refused(&["--resume"], "is no report of an evaluation");
    fs::remove_file(scene.path("out.json")).unwrap();
    // As an evaluation holds it that is at work.
    let held = fs::File::create(scene.path("out.json")).unwrap();
    held.lock().unwrap();
    refused(&["--resume"], "another evaluation");
    drop(held);
    assert!(eval(&scene, &flags).status.success());
    fs::remove_file(scene.path("out.json")).unwrap();
    fs::create_dir(scene.path("out.json")).unwrap();
    refused(&[], "is a folder");
}

#[test]
fn an_evaluation_that_cannot_begin_leaves_no_report() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = ["--tasks", "99", "--method", "frozen", "--json", "out.json"];
    let output = eval(&scene, &[&CLASSES[..], &flags].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(!scene.path("out.json").exists());
}

#[test]
fn an_evaluation_that_ends_before_its_first_run_writes_no_report() {
    let scene = Scene::new();
    benchmark(&scene);
    fs::write(scene.path("bench/train/tit/bad.png"), "no picture").unwrap();
    let arguments = [
        "eval",
        "--protocol",
        "class-incremental",
        "--data",
        "bench",
        "--tasks",
        "5",
        "--method",
        "finetune",
        "--model",
        "small",
        "--resolution",
        "28",
        "--epochs",
        "20",
        "--json",
        "out.json",
    ];
    let mut child = scene.start(&arguments);
    // Told when the images have been looked at and the first run is about to begin.
    let told = await_line(&mut child, "bad.png");
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let told = told + &text(&child.wait_with_output().unwrap().stderr);
    assert!(told.contains("before a first run was finished"), "{told}");
    assert!(!scene.path("out.json").exists());
}

#[test]
fn listed_values_become_methods_of_their_own() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = [
        "--tasks",
        "2",
        "--seeds",
        "1",
        "--rank",
        "auto,2",
        "--prompts",
        "0,3,0",
    ];
    let flags = [
        &CLASSES[..],
        &flags,
        &["--method", "fm-lora", "--json", "-"],
    ]
    .concat();
    let report = report(&scene, &flags);
    let names: Vec<&String> = report["methods"].as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "fm-lora rank=2 prompts=0",
            "fm-lora rank=2 prompts=3",
            "fm-lora rank=auto prompts=0",
            "fm-lora rank=auto prompts=3"
        ]
    );
}

#[test]
fn domains_are_learned_in_the_order_given() {
    let scene = Scene::new();
    grouped(&scene);
    let flags = [
        "--protocol",
        "domain-incremental",
        "--data",
        "grouped",
        "--order",
        "night,day",
        "--seeds",
        "1",
        "--json",
        "-",
    ];
    let report = report(&scene, &flags);
    assert_eq!(report["tasks"], 2);
    assert!(report["methods"]["fm-lora"]["acc"].as_f64().unwrap() > 90.0);
}

#[test]
fn what_is_wrong_with_a_benchmark_is_said() {
    let scene = Scene::new();
    grouped(&scene);
    let told = |flags: &[&str]| {
        let output = eval(&scene, flags);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr).to_string()
    };
    assert!(told(&CLASSES).contains("--tasks"));
    assert!(told(&[&CLASSES[..], &["--tasks", "9"]].concat()).contains("1 to 5"));
    let domain = ["--protocol", "domain-incremental", "--data", "bench"];
    assert!(told(&domain).contains("train/<group>/<class>"));
    let order = [
        "--protocol",
        "domain-incremental",
        "--data",
        "grouped",
        "--order",
        "dusk,day",
    ];
    assert!(told(&order).contains("dusk"));
    fs::rename(
        scene.path("grouped/test/day"),
        scene.path("grouped/test/dawn"),
    )
    .unwrap();
    let domains = ["--protocol", "domain-incremental", "--data", "grouped"];
    let unmatched = told(&domains);
    assert!(
        unmatched.contains("[\"day\"]") && unmatched.contains("[\"dawn\"]"),
        "{unmatched}"
    );
}

#[test]
fn runs_made_with_something_else_are_not_gone_on_from() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = ["--tasks", "2", "--method", "fm-lora", "--json", "out.json"];
    let flags = [&CLASSES[..], &flags].concat();
    assert!(
        eval(&scene, &[&flags[..], &["--seeds", "1"]].concat())
            .status
            .success()
    );
    let resumed = |more: &[&str]| eval(&scene, &[&flags[..], &["--resume"], more].concat());
    for other in [["--rank", "2"], ["--guard", "9"], ["--hold", "0"]] {
        let output = resumed(&[&other[..], &["--seeds", "1"]].concat());
        assert_eq!(output.status.code(), Some(1), "{other:?}");
        let told = text(&output.stderr);
        assert!(told.contains("made with other settings"), "{told}");
    }
    assert!(resumed(&["--seeds", "2"]).status.success());
    fs::remove_file(scene.path("bench/train/tit/01.png")).unwrap();
    assert_eq!(resumed(&["--seeds", "2"]).status.code(), Some(1));
}

#[test]
fn a_report_that_could_not_be_written_is_said_before_any_work() {
    let scene = Scene::new();
    benchmark(&scene);
    for file in ["--json", "--plot"] {
        let flags = ["--tasks", "2", "--method", "frozen", file, "nowhere/out"];
        let output = eval(&scene, &[&CLASSES[..], &flags].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("nowhere/out"));
        assert!(output.stdout.is_empty());
    }
    for (more, why) in [
        (vec!["--plot", "bench"], "is a folder"),
        (
            vec!["--plot", "small.onnx"],
            "is no picture of an evaluation",
        ),
        (
            vec!["--json", "out.json", "--plot", "./out.json"],
            "over the report",
        ),
    ] {
        let flags = ["--tasks", "2", "--method", "frozen"];
        let output = eval(&scene, &[&CLASSES[..], &flags, &more].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(why), "{more:?}");
        assert!(output.stdout.is_empty() && !scene.path("out.json").exists());
    }
}

/// An evaluation into `out/report.json` whose folder goes as soon as the runs begin, and the first
/// warning that the report could not be written.
fn evaluation_without_its_folder(scene: &Scene) -> Child {
    benchmark(scene);
    fs::write(scene.path("bench/train/tit/bad.png"), "no picture").unwrap();
    fs::create_dir(scene.path("out")).unwrap();
    let flags = "eval --protocol class-incremental --data bench --tasks 5 --method finetune \
                 --seeds 8 --model small --resolution 28 --epochs 20 --json out/report.json";
    let mut child = scene.start(&flags.split_whitespace().collect::<Vec<_>>());
    await_line(&mut child, "bad.png");
    fs::rename(scene.path("out"), scene.path("elsewhere")).unwrap();
    await_line(&mut child, "trying again after the next run");
    child
}

#[test]
fn a_report_that_could_not_be_written_for_a_while_is_whole_at_the_end() {
    let scene = Scene::new();
    let child = evaluation_without_its_folder(&scene);
    fs::rename(scene.path("elsewhere"), scene.path("out")).unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value =
        serde_json::from_slice(&fs::read(scene.path("out/report.json")).unwrap()).unwrap();
    assert_eq!(report["complete"], true);
    let runs = report["methods"]["finetune"]["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 8);
    assert!(text(&output.stdout).contains("finetune"));
}

#[test]
fn a_report_that_could_not_be_written_at_all_is_no_success() {
    let scene = Scene::new();
    let child = evaluation_without_its_folder(&scene);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    let last = told.lines().last().unwrap();
    assert!(
        last.contains("cannot write the report to out/report.json"),
        "{told}"
    );
    assert!(text(&output.stdout).contains("finetune"));
}

#[test]
fn folders_that_do_not_match_are_named_and_unreadable_photos_are_no_success() {
    let scene = Scene::new();
    benchmark(&scene);
    let flags = [
        "--tasks",
        "2",
        "--method",
        "frozen",
        "--seeds",
        "1",
        "--json",
        "report.json",
    ];
    let flags = [&CLASSES[..], &flags].concat();
    // What other programs keep beside the photos of a class does not make it a group; that it is not read is
    // said, as `learn` says it.
    let previews = scene.path("bench/train/tit/@eaDir");
    fs::create_dir(previews).unwrap();
    fs::write(scene.path("bench/test/tit/bad.png"), "no picture").unwrap();
    let kept = scene.path("report.json");
    // A report that has all runs is gone on from without encoding, which would find the unreadable photo.
    for more in [&[][..], &["--resume"]] {
        let output = eval(&scene, &[&flags, more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
        let told = text(&output.stderr);
        let skipped = report["skipped"].as_array().unwrap();
        assert_eq!(skipped.len(), 2, "{told}");
        for (file, skipped) in ["@eaDir", "bad.png"].into_iter().zip(skipped) {
            let skipped = skipped.as_str().unwrap();
            assert!(skipped.contains(file), "{skipped}");
            assert_eq!(told.matches(skipped).count(), 1, "{told}");
        }
    }

    fs::remove_file(&kept).unwrap();
    fs::rename(scene.path("bench/test/tit"), scene.path("bench/test/Tit")).unwrap();
    let output = eval(&scene, &flags);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("[\"tit\"]") && told.contains("[\"Tit\"]"),
        "{told}"
    );
    assert!(output.stdout.is_empty());
}
