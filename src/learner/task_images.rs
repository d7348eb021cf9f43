//! The images of an encoded task in one list, as training numbers them.

use super::EncodedTask;
use crate::data::{CacheError, TokenGrid};
use crate::head::ClassId;
use crate::state::TaughtClass;

/// The task's own images, class by class, and after them exemplars of old classes.
pub(super) struct TaskImages {
    /// Record in the cache of each image.
    pub records: Vec<usize>,
    /// Class of each image.
    pub labels: Vec<ClassId>,
    /// Images that train.
    pub training: Vec<usize>,
    /// Images held back.
    pub validation: Vec<usize>,
    /// All but the exemplars.
    pub own: Vec<usize>,
    /// What is kept of each of the task's classes.
    pub taught: Vec<TaughtClass>,
}

impl TaskImages {
    /// Lists the images of `task` and then `exemplars`, which all train. Names of new classes are added to
    /// `names`.
    pub fn of(
        task: &EncodedTask<'_>,
        names: &mut Vec<String>,
        grid: &TokenGrid,
        exemplars: &[(ClassId, usize)],
    ) -> Result<Self, CacheError> {
        let (mut records, mut labels) = (Vec::new(), Vec::new());
        let (mut training, mut validation) = (Vec::new(), Vec::new());
        let mut taught = Vec::with_capacity(task.classes.len());
        for class in &task.classes {
            let id = class_id(names, &class.name);
            for (part, images) in [
                (&class.training, &mut training),
                (&class.validation, &mut validation),
            ] {
                images.extend(records.len()..records.len() + part.len());
                records.extend_from_slice(part);
            }
            labels.resize(records.len(), id);
            taught.push(TaughtClass {
                class: id,
                images: u32::try_from(class.images()).unwrap_or(u32::MAX),
                tokens: class.mean_tokens(task.cache, grid)?,
            });
        }
        let own = (0..records.len()).collect();
        for &(class, record) in exemplars {
            training.push(records.len());
            records.push(record);
            labels.push(class);
        }
        Ok(Self {
            records,
            labels,
            training,
            validation,
            own,
            taught,
        })
    }

    /// Whether there is something to train by, `known` being how many classes were known before: an image that
    /// trains is told from others by a head of other images, which must hold its class.
    pub fn teach(&self, known: usize) -> bool {
        let labels = self.training.iter().map(|&image| self.labels[image]);
        let classes: Vec<ClassId> = labels.collect();
        let mut pairs = classes.windows(2);
        classes.iter().any(|&class| (class as usize) < known)
            || pairs.any(|pair| pair[0] == pair[1])
    }
}

/// The id of a class name, which is added if it is new.
fn class_id(names: &mut Vec<String>, name: &str) -> ClassId {
    let known = names.iter().position(|known| known == name);
    let index = known.unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    index as ClassId
}
