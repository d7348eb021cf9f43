//! Removing what was learned: exact, because every component carries the factor of its scatter.

use super::factor::Rows;
use super::{ClassId, Component, HeadError, Statistics, TaskId};

impl Statistics {
    /// Removes a class; afterwards the statistics are those of a head that never saw it, up to
    /// f32 rounding. Returns how many images went.
    ///
    /// # Errors
    /// [`HeadError::NoFactor`] when a factor is missing; nothing is removed then.
    pub fn forget(&mut self, class: ClassId) -> Result<u64, HeadError> {
        self.forget_where(|c| c.class == class)
    }

    /// Removes everything a task taught, as [`Statistics::forget`] does.
    ///
    /// # Errors
    /// [`HeadError::NoFactor`] when a factor is missing; nothing is removed then.
    pub fn forget_task(&mut self, task: TaskId) -> Result<u64, HeadError> {
        self.forget_where(|c| c.task == task)
    }

    /// Lowers every class number above `class`, which must have no component left, by one: for
    /// callers whose numbers are indices.
    ///
    /// # Panics
    /// When `class` still has a component.
    pub fn close_gap(&mut self, class: ClassId) {
        assert!(self.components.iter().all(|c| c.class != class));
        let above = self.components.iter_mut().filter(|c| c.class > class);
        above.for_each(|c| c.class -= 1);
        let marks = self.pooled.iter_mut().filter(|mark| **mark > class);
        marks.for_each(|mark| *mark -= 1);
    }

    fn forget_where(&mut self, goes: impl Fn(&Component) -> bool) -> Result<u64, HeadError> {
        let before = self.images();
        let mut going = self.components.iter().filter(|c| goes(c));
        if let Some(&Component { class, task, .. }) = going.find(|c| c.factor.is_none()) {
            return Err(HeadError::NoFactor { class, task });
        }
        self.unshelve()?;
        let mut rows = Rows::new(self.layout.dim);
        for component in self.components.iter().filter(|c| goes(c)) {
            let Some(factor) = &component.factor else {
                continue;
            };
            for part in self.held.clone() {
                rows.clear();
                factor.unpack(part, &mut rows)?;
                let place = self.scatter_of(part);
                rows.add_gram(-1.0, &mut self.scatter[place]);
            }
        }
        self.components.retain(|c| !goes(c));
        self.drop_idle_marks();
        if self.components.iter().all(|c| c.count < 2) {
            // Nothing is left that could vary: what remains in the sums is rounding.
            self.scatter.fill(0.0);
        }
        Ok(before - self.images())
    }
}
