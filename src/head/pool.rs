//! Classes that several tasks taught: one mean for all of them, or one each.
//!
//! Statistics keep every component apart, so that each can be removed exactly. Whether a class is
//! scored by one pooled mean, the spread between its components then being part of the covariance,
//! or as a mixture of all of them, is a mark that fitting goes by.

use super::{ClassId, Statistics};

/// Share of the loss that pooling a class must save: less is what a few images vary by.
const LEAST_GAIN: f64 = 0.03;

impl Statistics {
    /// Has the components of a class fitted as one, or apart from each other.
    pub fn set_pooled(&mut self, class: ClassId, pooled: bool) {
        match (self.pooled.binary_search(&class), pooled) {
            (Err(at), true) => self.pooled.insert(at, class),
            (Ok(at), false) => drop(self.pooled.remove(at)),
            _ => {}
        }
    }

    /// Classes whose components are fitted as one, ascending.
    pub fn pooled(&self) -> &[ClassId] {
        &self.pooled
    }

    /// Has the components of these classes, ascending, and of no others fitted as one.
    pub fn pool_only(&mut self, classes: Vec<ClassId>) {
        self.pooled = classes;
    }

    /// Whether the components of a class are fitted as one.
    pub fn is_pooled(&self, class: ClassId) -> bool {
        self.pooled.binary_search(&class).is_ok()
    }

    /// Pools those of `classes` where that lowers `loss` by a clear share, one after the other, and
    /// keeps the others apart.
    ///
    /// # Errors
    /// Those of `loss`.
    pub fn pool_where_better<E>(
        &mut self,
        classes: &[ClassId],
        mut loss: impl FnMut(&Self) -> Result<f64, E>,
    ) -> Result<(), E> {
        classes
            .iter()
            .for_each(|&class| self.set_pooled(class, false));
        let mut lowest = loss(self)?;
        for &class in classes {
            self.set_pooled(class, true);
            let pooled = loss(self)?;
            if pooled < lowest * (1.0 - LEAST_GAIN) {
                lowest = pooled;
            } else {
                self.set_pooled(class, false);
            }
        }
        Ok(())
    }

    /// Forgets the marks of classes that have fewer than two components.
    pub(super) fn drop_idle_marks(&mut self) {
        let components = &self.components;
        let several = |class: ClassId| components.iter().filter(|c| c.class == class).count() > 1;
        self.pooled.retain(|&class| several(class));
    }
}
