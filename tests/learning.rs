//! The whole way from photos to answers through the built program, on a small ViT with random
//! weights: learn, score, classify, and what must survive a failure.

mod scene;

use std::fs;

use serde_json::Value;

use scene::{Scene, text};

#[test]
fn a_second_task_is_learned_and_the_first_stays_known() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw_fish();
    let report = scene.learn("birds", &["--epochs", "2"]);
    assert_eq!(report["task"], "birds");
    assert_eq!(
        report["classes"],
        serde_json::json!(["robin", "sparrow", "tit"])
    );
    assert_eq!(
        (&report["images"], &report["skipped"]),
        (&36.into(), &0.into())
    );
    assert_eq!(report["epochs"], 2);
    let state = fs::metadata(scene.path("learned.fledge")).unwrap().len();
    assert_eq!(report["state_bytes"], state);
    assert!(report["parameters_added"].as_u64().unwrap() > 0);
    assert!(scene.accuracy("birds") > 0.95);
    scene.learn("fish", &["--epochs", "2"]);
    assert!(scene.accuracy("birds") > 0.9, "the birds were forgotten");
    assert!(scene.accuracy("fish") > 0.9);

    let shown = scene.run(&["state", "show", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["resolution"], 28);
    assert_eq!(
        shown["tasks"][1]["classes"],
        serde_json::json!(["goldfish", "trout"])
    );
    assert!(shown["tasks"][0]["bytes"].as_u64().unwrap() > 0);
}

#[test]
fn the_same_seed_and_threads_learn_the_same_state() {
    let learned = || {
        let scene = Scene::new();
        scene.draw_birds();
        scene.learn("birds", &["--epochs", "2", "--threads", "2", "--seed", "5"]);
        let knowledge: (fledge::state::Knowledge, _) =
            fledge::state::read(&scene.path("learned.fledge")).unwrap();
        (knowledge.0.adapters, knowledge.0.head)
    };
    assert!(learned() == learned());
}

#[test]
fn instant_learning_changes_no_feature() {
    let scene = Scene::new();
    scene.draw_birds();
    let report = scene.learn("birds", &["--instant"]);
    assert_eq!(
        (&report["epochs"], &report["parameters_added"]),
        (&0.into(), &0.into())
    );
    assert!(scene.accuracy("birds") > 0.95);
}

#[test]
fn every_block_can_be_adapted() {
    let scene = Scene::new();
    scene.draw_birds();
    let flags = [
        "learn",
        "--task",
        "birds",
        "--model",
        "small",
        "--adapt-blocks",
        "all",
    ];
    let output = scene.run(&[&flags[..], &["--resolution", "28", "--epochs", "1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(scene.accuracy("birds") > 0.9);
}

#[test]
fn an_image_that_is_none_gets_its_own_error_and_the_rest_are_classified() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    fs::write(scene.path("note.jpg"), "not an image").unwrap();
    let output = scene.run(&[
        "classify",
        "birds/robin/00.png",
        "note.jpg",
        "birds/tit/03.png",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let answers = text(&output.stdout);
    assert_eq!(answers.lines().count(), 2, "{answers}");
    assert!(
        answers.contains("robin") && answers.contains("tit"),
        "{answers}"
    );
    assert!(text(&output.stderr).contains("note.jpg"));
    let output = scene.run(&["classify", "--json", "--top", "2", "birds/robin/00.png"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["images"][0]["label"], "robin");
    assert_eq!(report["images"][0]["top"].as_array().unwrap().len(), 2);
}

#[test]
fn the_usable_part_of_a_damaged_task_is_learned() {
    let scene = Scene::new();
    scene.draw_birds();
    fs::write(scene.path("birds/robin/empty.jpg"), "").unwrap();
    let whole = fs::read(scene.path("birds/tit/00.png")).unwrap();
    fs::write(scene.path("birds/tit/cut.png"), &whole[..whole.len() / 2]).unwrap();
    fs::create_dir(scene.path("birds/wren")).unwrap();
    let flags = [
        "--model",
        "small",
        "--resolution",
        "28",
        "--instant",
        "--json",
    ];
    let output = scene.run(&[&["learn", "--task", "birds"][..], &flags[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).expect(&told);
    assert_eq!(report["images"], 36);
    assert!(
        told.contains("empty.jpg") && told.contains("cut.png"),
        "{told}"
    );
    assert!(scene.path("learned.fledge").exists());
}

#[test]
fn a_task_of_one_class_or_one_image_can_be_learned() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw("solo", "heron", [200, 200, 210], 13, 6);
    scene.draw("single", "egret", [250, 250, 250], 16, 1);
    let report = scene.learn("solo", &[]);
    assert_eq!(report["epochs"], 0);
    scene.learn("single", &[]);
    scene.learn("birds", &["--epochs", "1"]);
    assert!(scene.accuracy("solo") > 0.8);
    let (knowledge, _): (fledge::state::Knowledge, _) =
        fledge::state::read(&scene.path("learned.fledge")).unwrap();
    // One class is certain at any temperature, so that says nothing.
    assert!(knowledge.calibration.temperature(10) > 0.1);
}

#[test]
fn a_task_in_which_no_class_has_two_images_to_train_on_changes_no_feature() {
    let scene = Scene::new();
    for (class, colour, stripe) in [("heron", [200, 200, 210], 13), ("egret", [250, 90, 20], 6)] {
        scene.draw("pairs", class, colour, stripe, 2);
        scene.draw(
            "others",
            class.replace('e', "a").as_str(),
            colour,
            stripe + 3,
            2,
        );
        scene.draw("again", class, colour, stripe, 2);
    }
    for task in ["pairs", "others"] {
        let report = scene.learn(task, &["--epochs", "2"]);
        assert_eq!(report["epochs"], 0);
        assert_eq!(report["parameters_added"], 0);
        assert!(report["rank"].is_null());
    }
    // A class that is known already can be told from others.
    let again = scene.learn("again", &["--epochs", "2"]);
    assert!(again["epochs"].as_u64().unwrap() > 0);
}

#[test]
fn a_class_learned_again_adds_to_it() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    scene.draw("more", "robin", [180, 40, 20], 6, 8);
    scene.draw("more", "crow", [10, 10, 10], 8, 8);
    scene.learn("more", &["--instant"]);
    let (knowledge, _): (fledge::state::Knowledge, _) =
        fledge::state::read(&scene.path("learned.fledge")).unwrap();
    assert_eq!(
        knowledge
            .classes
            .iter()
            .filter(|name| *name == "robin")
            .count(),
        1
    );
    assert!(scene.accuracy("birds") > 0.9 && scene.accuracy("more") > 0.9);
}

#[test]
fn a_failure_leaves_the_state_byte_for_byte() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    let before = fs::read(scene.path("learned.fledge")).unwrap();
    fs::create_dir_all(scene.path("broken/a")).unwrap();
    fs::write(scene.path("broken/a/1.jpg"), "").unwrap();
    fs::create_dir(scene.path("empty")).unwrap();
    for arguments in [
        &["learn", "--task", "broken"][..],
        &["learn", "--task", "empty"],
        &["learn", "--task", "birds", "--resolution", "56"],
        &["learn", "--task", "birds", "--model", "another"],
    ] {
        let output = scene.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
        assert_eq!(fs::read(scene.path("learned.fledge")).unwrap(), before);
    }
}

#[test]
fn the_plan_of_a_state_is_what_its_next_task_is_learned_by() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw_fish();
    scene.learn("birds", &["--epochs", "2"]);
    let plan = |more: &[&str]| {
        let state = ["plan", "--json", "--state", "learned.fledge"];
        let task = ["--classes", "2", "--images", "20"];
        let output = scene.run(&[&state, &task, more].concat());
        let plan = output.status.success();
        plan.then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let learn = |budget: &str| {
        fs::copy(scene.path("learned.fledge"), scene.path("next.fledge")).unwrap();
        let learn = ["learn", "--task", "fish", "--state", "next.fledge"];
        let output =
            scene.run(&[&learn, ["--epochs", "1", "--budget", budget].as_slice()].concat());
        let alone = text(&output.stderr).contains("M and N learn alone");
        output.status.success().then_some(!alone)
    };
    assert_eq!(plan(&[]).unwrap()["bases_learn"], true);
    // Up to the first budget that is enough, and learning on both sides of it. This model has none
    // that M and N alone would fit.
    let budgets = (1..).map(|step| step * (16 << 10));
    let planned = |budget: usize| plan(&["--budget", &budget.to_string()]);
    let (enough, found) = budgets
        .map_while(|budget| (budget <= 8 << 20).then(|| (budget, planned(budget))))
        .find_map(|(budget, plan)| Some((budget, plan?)))
        .unwrap();
    assert_eq!(found["bases_learn"], true);
    assert_eq!(learn(&enough.to_string()), Some(true), "{enough} bytes");
    let less = enough - (16 << 10);
    assert_eq!(learn(&less.to_string()), None, "{less} bytes");

    let other = scene.run(&["plan", "--state", "learned.fledge", "--rank", "4"]);
    assert_eq!(other.status.code(), Some(2), "the state's rank holds");
    let missing = scene.run(&["plan", "--state", "other.fledge"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("other.fledge"));
}

#[test]
fn a_state_learned_with_another_model_is_refused() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    fs::remove_file(scene.path("home/models/small.weights")).unwrap();
    scene.import("timm_vit_layer_scale", "small");
    let output = scene.run(&["classify", "birds/robin/00.png"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("learned with the model small"), "{told}");
}

#[test]
fn a_resolution_that_does_not_divide_into_patches_is_explained() {
    let scene = Scene::new();
    scene.draw_birds();
    let output = scene.run(&[
        "learn",
        "--task",
        "birds",
        "--model",
        "small",
        "--resolution",
        "29",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("multiple"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_state_that_cannot_be_saved_is_said_before_any_work() {
    let scene = Scene::new();
    scene.draw_birds();
    let output = scene.run(&[
        "learn",
        "--task",
        "birds",
        "--model",
        "small",
        "--state",
        "no/x.fledge",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no/x.fledge"));
}

#[test]
fn a_name_that_differs_in_case_alone_is_another_class_and_is_said_to_be() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    fs::create_dir(scene.path("again")).unwrap();
    fs::rename(scene.path("birds/robin"), scene.path("again/Robin")).unwrap();
    let output = scene.run(&["learn", "--task", "again", "--instant"]);
    assert!(output.status.success());
    let told = text(&output.stderr);
    assert!(
        told.contains("\"Robin\"") && told.contains("\"robin\""),
        "{told}"
    );
}

#[test]
fn the_answer_says_why_no_update_was_kept() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.learn("birds", &["--instant"]);
    let output = scene.run(&["learn", "--task", "birds", "--instant"]);
    let told = text(&output.stdout);
    assert!(told.contains("the head alone learned"), "{told}");
}

#[test]
fn while_one_changes_a_state_another_is_turned_away_before_it_begins() {
    let scene = Scene::new();
    scene.draw_birds();
    scene.draw_fish();
    scene.learn("birds", &["--instant"]);
    let state = scene.path("learned.fledge");
    let before = fs::read(&state).unwrap();
    let claim = fledge::state::claim(&state).unwrap();
    for change in [
        &["learn", "--task", "fish", "--instant"][..],
        &["forget", "--task", "1"],
    ] {
        let refused = scene.run(change);
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("another fledge is changing"), "{told}");
        assert_eq!(fs::read(&state).unwrap(), before);
    }
    // Who only reads is not in the way.
    assert!(scene.run(&["state", "show"]).status.success());
    assert!(scene.run(&["score", "--task", "birds"]).status.success());
    drop(claim);
    scene.learn("fish", &["--instant"]);
}
