//! Forgetting through the built program: what is left equals a state that never saw it.

mod scene;

use std::fs;

use fledge::head::Statistics;
use fledge::state::Knowledge;
use serde_json::{Value, json};

use scene::{Scene, text};

/// Features that no image of any task has a part in: prompts start from those of the first.
const FIXED: [&str; 3] = ["--instant", "--prompts", "0"];

/// Runs `fledge forget` and returns the JSON it prints.
fn forget(scene: &Scene, what: &[&str]) -> Value {
    let output = scene.run(&[&["forget", "--json"], what].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_close(ours: &[f32], truth: &[f32]) {
    assert_eq!(ours.len(), truth.len());
    let scale = truth.iter().fold(1e-6f32, |top, v| top.max(v.abs()));
    for (x, y) in ours.iter().zip(truth) {
        assert!((x - y).abs() < 1e-4 * scale, "{x} and {y} of {scale}");
    }
}

fn assert_same_head(ours: &Statistics, truth: &Statistics) {
    assert_eq!(ours.components(), truth.components());
    for part in 0..truth.layout().parts {
        assert_close(&ours.scatter(part).unwrap(), &truth.scatter(part).unwrap());
    }
}

fn assert_same_knowledge(ours: &Knowledge, truth: &Knowledge) {
    assert_same_head(&ours.head, &truth.head);
    assert_eq!(ours.classes, truth.classes);
    let taught = |k: &Knowledge| -> Vec<_> {
        let tasks = k.tasks.iter();
        tasks.map(|t| (t.name.clone(), t.classes.clone())).collect()
    };
    assert_eq!(taught(ours), taught(truth));
}

#[test]
fn a_forgotten_class_leaves_a_state_that_never_saw_it() {
    let (scene, never) = (Scene::new(), Scene::new());
    for scene in [&scene, &never] {
        scene.draw_birds();
        scene.draw_fish();
    }
    fs::remove_dir_all(never.path("birds/sparrow")).unwrap();
    for scene in [&scene, &never] {
        scene.learn("birds", &FIXED);
        scene.learn("fish", &FIXED);
    }
    let report = forget(&scene, &["--class", "sparrow"]);
    assert_eq!(report["classes"], json!(["sparrow"]));
    assert_eq!(
        (&report["images"], &report["tasks"]),
        (&json!(12), &json!([]))
    );
    let bytes = fs::metadata(scene.path("learned.fledge")).unwrap().len();
    assert_eq!(report["state_bytes"], bytes);
    assert_same_knowledge(&scene.knowledge(), &never.knowledge());

    let named = |scene: &Scene| {
        let output = scene.run(&["classify", "--json", "birds/tit/01.png"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["images"][0].clone()
    };
    assert_eq!(named(&scene)["label"], "tit");
    assert_eq!(named(&scene)["label"], named(&never)["label"]);
}

#[test]
fn a_forgotten_task_goes_with_its_names_and_the_numbers_of_the_others_stay() {
    let (scene, never) = (Scene::new(), Scene::new());
    for scene in [&scene, &never] {
        scene.draw_birds();
        scene.draw_fish();
        scene.draw("more", "robin", [180, 40, 20], 6, 8);
        scene.draw("more", "crow", [10, 10, 10], 8, 8);
    }
    for task in ["birds", "fish", "more"] {
        scene.learn(task, &FIXED);
    }
    for task in ["fish", "more"] {
        never.learn(task, &FIXED);
    }
    let report = forget(&scene, &["--task", "1"]);
    assert_eq!(report["classes"], json!(["sparrow", "tit"]));
    assert_eq!(report["still_known"], json!(["robin"]));
    assert_eq!(
        (&report["images"], &report["tasks"]),
        (&json!(36), &json!([1]))
    );
    let shown = scene.run(&["state", "show", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let numbers: Vec<_> = shown["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["task"])
        .collect();
    assert_eq!(numbers, [2, 3]);
    assert!(scene.accuracy("fish") > 0.9 && scene.accuracy("more") > 0.9);

    // Class numbers follow the order of learning, so they are compared by name.
    let (ours, truth) = (scene.knowledge(), never.knowledge());
    assert_eq!(ours.head.images(), truth.head.images());
    for name in ["robin", "crow", "trout", "goldfish"] {
        let mean = |k: &Knowledge| {
            let class = k.class(name).unwrap();
            let of_class = k.head.components().iter().find(|c| c.class == class);
            of_class.unwrap().mean.clone()
        };
        assert_close(&mean(&ours), &mean(&truth));
    }
    for part in 0..truth.head.layout().parts {
        assert_close(
            &ours.head.scatter(part).unwrap(),
            &truth.head.scatter(part).unwrap(),
        );
    }
}

#[test]
fn what_is_not_known_is_named_with_the_nearest_and_changes_nothing() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    let before = fs::read(scene.path("learned.fledge")).unwrap();
    for (what, told) in [
        (&["--class", "Sparow"][..], "did you mean \"sparrow\"?"),
        (&["--class", "tit", "--class", "xylophone"], "\"xylophone\""),
        (&["--task", "7"], "there is no task 7"),
    ] {
        let output = scene.run(&[&["forget"], what].concat());
        assert_eq!(output.status.code(), Some(1), "{what:?}");
        assert!(output.stdout.is_empty());
        let said = text(&output.stderr);
        assert!(said.contains(told), "{said}");
        assert!(said.contains("state show"), "{said}");
        assert_eq!(fs::read(scene.path("learned.fledge")).unwrap(), before);
    }
}

#[test]
fn a_state_that_forgot_everything_can_learn_again() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--epochs", "1"]);
    let report = forget(
        &scene,
        &["--class", "tit", "--class", "robin", "--class", "sparrow"],
    );
    assert_eq!(report["classes"], json!(["robin", "sparrow", "tit"]));
    assert_eq!(
        (&report["images"], &report["tasks"]),
        (&json!(36), &json!([1]))
    );
    let output = scene.run(&["classify", "birds/tit/00.png"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("learn a task first"), "{told}");
    let shown = scene.run(&["state", "show"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    scene.learn("birds", &["--epochs", "1"]);
    assert!(scene.accuracy("birds") > 0.9);
}
