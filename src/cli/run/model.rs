//! Making a model ready, and asking whether one could be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fledge::train::frozen;
use fledge::vit::Preprocessing;
use fledge::vit::import::{self, ImportError};
use fledge::vit::store::{Description, Given, ModelStore, Step};
use fledge::{Progress, Stage};

use crate::cli::output::{ModelCheckReport, ModelGetReport, ModelVerdict};
use crate::cli::settings;

pub fn model_get(
    settings: &settings::ModelGet,
    progress: &dyn Progress,
) -> anyhow::Result<ModelGetReport> {
    let store = ModelStore::at(&settings.home);
    if settings.from.is_none() {
        let name = Description::default_model().name;
        let path = store.path(&name)?;
        if let Ok(weights) = store.open(Some(&name))
            && weights.verify().is_ok()
        {
            return model_report(name, path, *weights.preprocessing(), false);
        }
    }
    let given = settings.from.as_deref().map(|file| Given {
        file,
        name: settings.name.as_deref(),
        preprocessing: settings.preprocessing,
    });
    let ready = store.get(given, frozen::forward, |step| match step {
        Step::Downloading(_) => progress.begin(Stage::Download, 0),
        Step::Verifying | Step::Unpacking | Step::Importing => progress.begin(Stage::Import, 0),
    })?;
    progress.finish();
    model_report(ready.name, ready.path, ready.preprocessing, true)
}

fn model_report(
    model: String,
    path: PathBuf,
    preprocessing: Preprocessing,
    imported: bool,
) -> anyhow::Result<ModelGetReport> {
    let bytes = fs::metadata(&path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    Ok(ModelGetReport {
        model,
        path,
        bytes,
        preprocessing,
        imported,
    })
}

pub fn model_check(file: &Path, progress: &dyn Progress) -> anyhow::Result<ModelCheckReport> {
    progress.begin(Stage::Import, 0);
    let checked = import::check_with(file, frozen::forward);
    progress.finish();
    let verdict = match checked {
        Ok(imported) => ModelVerdict::Adaptable {
            tokens: imported.geometry.tokens(imported.geometry.image),
            largest_difference: imported.max_difference(),
            geometry: imported.geometry,
        },
        Err(error @ (ImportError::Read { .. } | ImportError::Write { .. })) => bail!(error),
        Err(refusal) => ModelVerdict::Refused {
            reason: refusal.to_string(),
        },
    };
    Ok(ModelCheckReport {
        file: file.to_owned(),
        adaptable: matches!(verdict, ModelVerdict::Adaptable { .. }),
        verdict,
    })
}
