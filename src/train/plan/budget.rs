//! How much memory learning may take.

/// `learn` without `--budget` starts from 8 MiB.
pub const DEFAULT_BUDGET: usize = 8 << 20;

/// Bytes that learning may take beyond the frozen model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So many, whatever is known.
    Fixed(usize),
    /// So many, or where what is known leaves too little of them, as many more as it takes to learn what could
    /// be learned if nothing were known.
    Growing(usize),
}

impl Budget {
    /// What it is while little is known.
    pub fn bytes(self) -> usize {
        let (Self::Fixed(bytes) | Self::Growing(bytes)) = self;
        bytes
    }

    /// Whether it grows with what is known.
    pub fn grows(self) -> bool {
        matches!(self, Self::Growing(_))
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::Growing(DEFAULT_BUDGET)
    }
}
