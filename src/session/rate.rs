//! Token buckets: so many per second, so many at once. A bucket is a sliding window: within any t seconds, wherever they begin, at most
//! burst + rate * t pass.

/// One bucket, 8 bytes. Time is milliseconds of the core's own clock, wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Thousandths of a token; below 0 what was taken on credit.
    tokens_milli: i32,
    stamp_ms: u32,
}

/// What a bucket allows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rate {
    /// Tokens that come back per second; 0: no limit.
    pub per_second: u32,
    /// Tokens in a full bucket.
    pub burst: u32,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now_ms: u32) -> Self {
        Self { tokens_milli: full(rate), stamp_ms: now_ms }
    }

    /// Whether nothing has been taken that has not come back.
    #[must_use]
    pub fn is_full(&self, rate: Rate, now_ms: u32) -> bool {
        let refill = u64::from(now_ms.wrapping_sub(self.stamp_ms)).saturating_mul(u64::from(rate.per_second));
        let tokens = u64::try_from(self.tokens_milli);
        tokens.is_ok_and(|tokens| tokens.saturating_add(refill) >= u64::from(rate.burst).saturating_mul(1000))
    }

    /// Takes one token, or says in how many milliseconds there will be one.
    ///
    /// # Errors
    /// The time to wait, at least 1 ms.
    pub fn take(&mut self, rate: Rate, now_ms: u32) -> Result<(), u32> {
        self.take_on_credit(rate, now_ms, 0)
    }

    /// Takes one token although up to `credit` are missing: for what may turn out to cost nothing, see [`Bucket::give_back`].
    ///
    /// # Errors
    /// As [`Bucket::take`].
    #[expect(
        clippy::expect_used,
        reason = "tokens are between what 32 bits held and a full bucket; what is missing is at most the greatest credit, and one"
    )]
    pub fn take_on_credit(&mut self, rate: Rate, now_ms: u32, credit: u16) -> Result<(), u32> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let elapsed_ms = now_ms.wrapping_sub(self.stamp_ms);
        let refill = u64::from(elapsed_ms).saturating_mul(u64::from(rate.per_second));
        let tokens = i64::from(self.tokens_milli).saturating_add_unsigned(refill).min(i64::from(full(rate)));
        self.stamp_ms = now_ms;
        self.tokens_milli = i32::try_from(tokens).expect("below a full bucket, and never far below an empty one");
        let missing = 1000_i64.saturating_sub(i64::from(credit).saturating_mul(1000)).saturating_sub(tokens);
        if missing > 0 {
            let missing = u32::try_from(missing).expect("at most the credit, and one");
            return Err(missing.div_ceil(rate.per_second).max(1));
        }
        self.tokens_milli = self.tokens_milli.saturating_sub(1000);
        Ok(())
    }

    /// Puts back what was taken for something that cost nothing.
    pub fn give_back(&mut self, rate: Rate) {
        self.tokens_milli = self.tokens_milli.saturating_add(1000).min(full(rate));
    }
}

/// A full bucket in thousandths.
fn full(rate: Rate) -> i32 {
    i32::try_from(rate.burst.saturating_mul(1000)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 20, burst: 3 };

    /// On credit more passes than is there; what cost nothing is given back, the rest must be earned before anything passes again.
    #[test]
    fn credit_is_paid_back() {
        let mut bucket = Bucket::full(RATE, 5);
        for _ in 0..3 + 4 {
            assert_eq!(bucket.take_on_credit(RATE, 5, 4), Ok(()));
        }
        assert_eq!(bucket.take_on_credit(RATE, 5, 4), Err(50));
        assert_eq!(bucket.take(RATE, 5), Err(250));
        for _ in 0..4 {
            bucket.give_back(RATE);
        }
        assert_eq!(bucket.take(RATE, 5), Err(50));
        for _ in 0..9 {
            bucket.give_back(RATE);
        }
        assert_eq!((0..4).map(|_| bucket.take(RATE, 5)).filter(Result::is_ok).count(), 3, "never fuller than full");
    }

    /// A burst passes, the next is told when, and at that time it passes.
    #[test]
    fn a_spent_bucket_says_when_to_come_back() {
        let mut bucket = Bucket::full(RATE, 5);
        for _ in 0..3 {
            assert_eq!(bucket.take(RATE, 5), Ok(()));
        }
        assert_eq!(bucket.take(RATE, 5), Err(50));
        assert_eq!(bucket.take(RATE, 54), Err(1));
        assert_eq!(bucket.take(RATE, 55), Ok(()));
        assert_eq!(bucket.take(RATE, 55), Err(50));
        assert!(!bucket.is_full(RATE, 204));
        assert!(bucket.is_full(RATE, 205));
    }

    /// However long it rests, a bucket holds no more than its burst; the clock may wrap meanwhile.
    #[test]
    fn a_bucket_never_holds_more_than_its_burst() {
        let mut bucket = Bucket::full(RATE, u32::MAX - 10);
        let later = (u32::MAX - 10).wrapping_add(100_000);
        for _ in 0..3 {
            assert_eq!(bucket.take(RATE, later), Ok(()));
        }
        assert!(bucket.take(RATE, later).is_err());
    }

    /// Zero per second means no limit.
    #[test]
    fn zero_is_no_limit() {
        let rate = Rate { per_second: 0, burst: 0 };
        let mut bucket = Bucket::full(rate, 0);
        assert!((0..1000).all(|_| bucket.take(rate, 0).is_ok()));
    }
}
