//! Saying "unknown" through the built program, on a small ViT with random weights.

mod scene;

use serde_json::{Value, json};

use scene::{Scene, text};

fn score(scene: &Scene, task: &str, more: &[&str]) -> Value {
    let output = scene.run(&[&["score", "--json", "--task", task], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn classify(scene: &Scene, image: &str, more: &[&str]) -> Value {
    let output = scene.run(&[&["classify", "--json", image], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["images"][0].clone()
}

#[test]
fn classes_never_learned_are_called_unknown_and_learned_ones_named() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw("strangers", "zebra", [255, 255, 255], 1, 8);
    scene.learn("birds", &["--instant"]);
    let known = score(&scene, "birds", &[]);
    assert!(known["accuracy"].as_f64().unwrap() > 0.95);
    assert!(known["unknown"].as_u64().unwrap() <= 6, "{known}");
    let strangers = score(&scene, "strangers", &[]);
    assert_eq!(strangers["accuracy"], Value::Null);
    assert_eq!(strangers["per_class"]["zebra"]["accuracy"], Value::Null);
    assert!(strangers["unknown"].as_u64().unwrap() >= 6, "{strangers}");
    let share = strangers["unknown"].as_f64().unwrap() / 8.0;
    assert_eq!(strangers["open_set_accuracy"], share);

    let answer = classify(&scene, "strangers/zebra/00.png", &[]);
    assert_eq!(answer["label"], "unknown");
    assert_eq!(
        (&answer["unknown"], &answer["probability"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(answer["top"].as_array().unwrap().len(), 3);
    let shown = scene.run(&["classify", "strangers/zebra/00.png"]);
    let shown = text(&shown.stdout);
    assert!(shown.contains(": unknown (nearest: "), "{shown}");
}

#[test]
fn a_rate_of_zero_names_everything() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw("strangers", "zebra", [255, 255, 255], 1, 4);
    scene.learn("birds", &["--instant"]);
    let report = score(&scene, "strangers", &["--reject", "0"]);
    assert_eq!(report["unknown"], 0);
    let answer = classify(&scene, "strangers/zebra/00.png", &["--reject", "0"]);
    assert_eq!(answer["unknown"], false);
    assert_eq!(answer["label"], answer["top"][0]["label"]);
}

#[test]
fn a_class_may_be_named_unknown() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw("birds", "unknown", [90, 250, 90], 3, 12);
    scene.learn("birds", &["--instant"]);
    let answer = classify(&scene, "birds/unknown/03.png", &["--reject", "0.01"]);
    assert_eq!(answer["label"], "unknown");
    assert_eq!(answer["unknown"], false);
    assert!(answer["probability"].as_f64().unwrap() > 0.3);
}

#[test]
fn where_every_class_has_a_single_image_nothing_is_unknown() {
    let scene = Scene::new();
    for (class, colour, stripe) in [("robin", [220, 60, 30], 5), ("tit", [60, 120, 230], 7)] {
        scene.draw("birds", class, colour, stripe, 1);
    }
    scene.draw("strangers", "zebra", [255, 255, 255], 1, 4);
    scene.learn("birds", &["--instant"]);
    assert_eq!(
        score(&scene, "strangers", &["--reject", "0.5"])["unknown"],
        0
    );
}
