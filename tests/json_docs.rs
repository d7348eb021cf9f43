//! `docs/json.md` names every field that the program prints, and none that it does not.

mod scene;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use scene::{Scene, text};

/// Objects with keys that vary, and what the page calls such a key.
const VARYING: [(&str, &str); 3] = [
    ("per_class", "NAME"),
    ("rank_probabilities", "RANK"),
    ("methods", "NAME"),
];

/// The fields of `value`, as the page writes them: `x.y`, `x[].y`.
fn fields(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            let varying = VARYING.iter().find(|(name, _)| *name == path);
            for (key, value) in object {
                let key = varying.map_or(key.as_str(), |(_, placeholder)| placeholder);
                let path = match path {
                    "" => key.to_owned(),
                    _ => format!("{path}.{key}"),
                };
                fields(&path, value, into);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for value in list {
                fields(&format!("{path}[]"), value, into);
            }
        }
        _ => _ = into.insert(path.to_owned()),
    }
}

/// The fields that the page gives for a command.
fn documented(page: &str, command: &str) -> BTreeSet<String> {
    let heading = format!("## {command}\n");
    let (_, section) = page
        .split_once(&heading)
        .expect("the command has a section");
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap_or(row).to_owned())
        .collect()
}

#[test]
fn every_command_prints_the_fields_of_the_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md");
    let page = fs::read_to_string(page).unwrap();
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw_fish();
    for split in ["train", "test"] {
        let images = if split == "train" { 6 } else { 2 };
        scene.draw(
            &format!("bench/{split}/a"),
            "robin",
            [220, 60, 30],
            5,
            images,
        );
        scene.draw(
            &format!("bench/{split}/b"),
            "trout",
            [40, 200, 160],
            4,
            images,
        );
    }
    let hold = |command: &str, printed: &Value| {
        let mut found = BTreeSet::new();
        fields("", printed, &mut found);
        assert_eq!(found, documented(&page, command), "fields of {command}");
    };
    let run = |command: &str, arguments: &[&str]| {
        let mut words: Vec<&str> = command.split(' ').collect();
        words.extend(arguments);
        let output = scene.run(&words);
        assert!(
            output.status.success(),
            "{command}: {}",
            text(&output.stderr)
        );
        hold(command, &serde_json::from_slice(&output.stdout).unwrap());
    };

    scene.learn("birds", &[]);
    // A second task chooses a rank; of the first there is none to choose.
    hold("learn", &scene.learn("fish", &["--epochs", "4"]));
    run("score", &["--task", "fish", "--json"]);
    run("classify", &["fish/trout/00.png", "--json"]);
    run(
        "watch",
        &["--camera", "dir:fish/trout", "--frames", "1", "--json"],
    );
    run("state show", &["--json"]);
    run("config show", &["--json"]);
    run("model check", &["small.onnx", "--json"]);
    run(
        "plan",
        &["--model", "small", "--resolution", "28", "--json"],
    );
    run(
        "eval",
        &[
            "--protocol",
            "class-incremental",
            "--data",
            "bench",
            "--method",
            "frozen",
            "--model",
            "small",
            "--resolution",
            "28",
            "--json",
            "-",
        ],
    );
    run("forget", &["--class", "trout", "--json"]);
    run(
        "bench",
        &[
            "--model",
            "small",
            "--threads",
            "1",
            "--seconds",
            "1",
            "--json",
        ],
    );
}

#[test]
fn fields_are_written_as_the_page_writes_them() {
    let printed =
        json!({"a": [{"b": 1}, {"c": null}], "per_class": {"robin": {"images": 2}}, "d": []});
    let mut found = BTreeSet::new();
    fields("", &printed, &mut found);
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["a[].b", "a[].c", "d", "per_class.NAME.images"]);
}
