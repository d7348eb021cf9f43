//! The picture of an evaluation, through the built program.

mod scene;

use std::fs;

use scene::{Scene, text};

#[test]
fn an_evaluation_draws_its_lines_with_their_names() {
    let scene = Scene::new();
    let colours = [
        [220, 60, 30],
        [60, 120, 230],
        [40, 200, 160],
        [250, 180, 20],
    ];
    for (index, (class, colour)) in ["robin", "tit", "trout", "goldfish"]
        .iter()
        .zip(colours)
        .enumerate()
    {
        let stripe = 4 + 2 * index as u32;
        scene.draw("bench/train", class, colour, stripe, 8);
        scene.draw("bench/test", class, colour, stripe, 3);
    }
    let arguments = [
        "eval",
        "--protocol",
        "class-incremental",
        "--data",
        "bench",
        "--tasks",
        "2",
        "--method",
        "frozen,joint",
        "--seeds",
        "1",
        "--model",
        "small",
        "--resolution",
        "28",
        "--adapt-blocks",
        "1",
        "--epochs",
        "1",
        "--plot",
    ];
    let output = scene.run(&[&arguments[..], &["out.svg"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let picture = fs::read_to_string(scene.path("out.svg")).unwrap();
    for part in ["<svg", "frozen", "joint", "tasks learned"] {
        assert!(picture.contains(part), "{part} is not in the picture");
    }
    let output = scene.run(&[&arguments[..], &["no/out.svg"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no/out.svg"));
    assert!(output.stdout.is_empty(), "said before any work");
}
