//! How many bytes adapters may take on the device.

/// A limit and what is taken of it. What is taken is held by [`Reservation`]s, which cannot be copied and go back
/// through [`DeviceBudget::release`].
#[derive(Debug)]
pub(super) struct DeviceBudget {
    limit: u64,
    used: u64,
}

/// Bytes taken of a [`DeviceBudget`].
#[must_use = "bytes are given back only through DeviceBudget::release"]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    bytes: u64,
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Two reservations as one.
    pub(super) fn merge(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes }
    }
}

impl DeviceBudget {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn free(&self) -> u64 {
        self.limit - self.used
    }

    /// Take `bytes`, all or nothing.
    pub(super) fn reserve(&mut self, bytes: u64) -> Option<Reservation> {
        if bytes > self.free() {
            return None;
        }
        self.used += bytes;
        Some(Reservation { bytes })
    }

    /// Make a reservation `bytes` large; on refusal it stays as it is.
    pub(super) fn resize(&mut self, reservation: &mut Reservation, bytes: u64) -> bool {
        let others = self.used - reservation.bytes;
        if bytes > self.limit - others {
            return false;
        }
        self.used = others + bytes;
        reservation.bytes = bytes;
        true
    }

    pub(super) fn release(&mut self, reservation: Reservation) {
        self.used -= reservation.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_any_order_of_calls() {
        let mut budget = DeviceBudget::new(10);
        let mut a = budget.reserve(6).unwrap();
        assert_eq!(budget.reserve(5), None);
        assert_eq!(budget.reserve(u64::MAX), None);
        let b = budget.reserve(4).unwrap();
        assert!(!budget.resize(&mut a, 7));
        assert!(budget.resize(&mut a, 1));
        assert_eq!((budget.used(), budget.free()), (5, 5));
        budget.release(a.merge(b));
        assert_eq!((budget.used(), budget.limit()), (0, 10));
    }
}
