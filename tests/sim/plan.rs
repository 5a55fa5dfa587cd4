//! What one seed decides: how large the world is, how its clients behave and what goes wrong in it.

use crate::network::Weather;
use crate::random::Random;
use crate::{MS, SECOND, US};

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub cores: usize,
    pub users: usize,
    pub devices_per_user: usize,
    pub groups: usize,
    /// Clients that write their frames by hand, see `rude.rs`.
    pub rudes: usize,
    /// Everybody watches everybody.
    pub watches: bool,
    /// Mean time between two messages of a device.
    pub send_every_ns: u64,
    /// Of a million wishes to send so many are bursts.
    pub burst_ppm: u64,
    /// Of a million turns of a person so many are an AUTH.
    pub renew_ppm: u64,
    /// Of a million ACKs so many are followed by one that names older cursors.
    pub older_acks_ppm: u64,
    /// Seconds that a token lasts, while there is trouble; 0: it outlasts the run.
    pub token_life_s: u64,
    pub payload_max: u64,
    /// How long faults happen.
    pub trouble_ns: u64,
    /// Everyone has everything so long after that.
    pub converge_ns: u64,
    pub faults: Faults,
    pub weather: Weather,
    // Bounds, small enough to be met.
    pub window: u16,
    pub send_window: u16,
    pub queue_soft_bytes: u32,
    pub segment_bytes: u64,
    pub submit_max: usize,
    pub parked_max: usize,
    /// At least so many places has the parking when the trouble is over.
    pub parked_calm_max: usize,
    pub credit_bytes: u64,
    pub group_max: usize,
    pub peer_max: usize,
    pub jobs_max: usize,
    pub projections_max: usize,
    pub checkpoint_ppm: u64,
    pub sync_ns: u64,
    pub dedup_s: u32,
    /// How long a session waits for its client to come back.
    pub resume_ms: u32,
}

/// Mean time between two faults of a kind; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub kill_ns: u64,
    pub power_cut_ns: u64,
    pub stop_ns: u64,
    pub disk_error_ns: u64,
    pub disk_full_ns: u64,
    pub disk_slow_ns: u64,
    pub clock_jump_ns: u64,
    pub stall_ns: u64,
    pub device_restart_ns: u64,
    pub members_ns: u64,
    pub revoke_ns: u64,
}

impl Plan {
    /// Everything works.
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            cores: 2,
            users: 5,
            devices_per_user: 2,
            groups: 2,
            rudes: 0,
            watches: true,
            send_every_ns: SECOND,
            burst_ppm: 50_000,
            renew_ppm: 0,
            older_acks_ppm: 0,
            token_life_s: 0,
            payload_max: 200,
            trouble_ns: 20 * SECOND,
            converge_ns: 30 * SECOND,
            faults: Faults::default(),
            weather: Weather {
                latency_ns: 2 * MS,
                latency_max_ns: u64::MAX,
                reset_ppm: 0,
                silence_ppm: 0,
                silence_ns: SECOND,
                pause_ppm: 0,
            },
            window: 64,
            send_window: 64,
            queue_soft_bytes: 64 * 1024,
            segment_bytes: 256 * 1024,
            submit_max: 16_384,
            parked_max: 4_096,
            parked_calm_max: 4_096,
            credit_bytes: 64 << 20,
            group_max: 256,
            peer_max: 1024,
            jobs_max: 1024,
            projections_max: 4096,
            checkpoint_ppm: 100_000,
            sync_ns: MS,
            dedup_s: 86_400,
            resume_ms: 5_000,
        }
    }

    /// What a seed of the campaign does: each fault is there in some seeds and not in others, so that none hides another.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed).stream("plan", 0);
        let mut plan = Self::calm(seed);
        let random = &mut random;
        plan.cores = *random.pick(&[1, 2, 2, 3]);
        plan.users = usize::try_from(random.between(2, 6)).expect("few");
        plan.devices_per_user = *random.pick(&[1, 1, 2, 3]);
        plan.groups = random.index(4);
        plan.send_every_ns = *random.pick(&[100 * MS, 300 * MS, SECOND, 3 * SECOND]);
        plan.burst_ppm = *random.pick(&[0, 50_000, 200_000]);
        plan.payload_max = *random.pick(&[40, 200, 2_000]);
        plan.trouble_ns = random.between(8, 20) * SECOND;
        plan.weather.latency_ns = *random.pick(&[200 * US, 2 * MS, 20 * MS, 100 * MS]);
        plan.weather.reset_ppm = *random.pick(&[0, 0, 1_000, 10_000]);
        plan.weather.silence_ppm = *random.pick(&[0, 0, 1_000, 5_000]);
        plan.weather.silence_ns = *random.pick(&[100 * MS, SECOND, 5 * SECOND]);
        plan.weather.pause_ppm = *random.pick(&[0, 0, 2_000, 20_000]);
        plan.window = *random.pick(&[1, 2, 8, 64]);
        plan.send_window = *random.pick(&[2, 8, 64]);
        plan.queue_soft_bytes = *random.pick(&[1_024, 8_192, 65_536]);
        plan.segment_bytes = *random.pick(&[16 * 1024, 64 * 1024, 256 * 1024]);
        plan.submit_max = *random.pick(&[4, 64, 16_384]);
        plan.credit_bytes = *random.pick(&[8_192, 1 << 20]);
        plan.group_max = *random.pick(&[1, 4, 256]);
        plan.peer_max = *random.pick(&[1, 1024]);
        plan.jobs_max = *random.pick(&[2, 16, 1024]);
        plan.projections_max = *random.pick(&[1, 8, 4096]);
        plan.checkpoint_ppm = *random.pick(&[0, 20_000, 300_000]);
        plan.sync_ns = *random.pick(&[200 * US, 2 * MS, 20 * MS]);
        plan.resume_ms = *random.pick(&[0, 1_000, 8_000]);
        // Drawn last: what is decided above stays as it was.
        let mut later = Random::new(seed).stream("plan", 1);
        plan.parked_max = *later.pick(&[2, 8, 4_096, 4_096]);
        plan.rudes = *later.pick(&[0, 0, 1, 2]);
        plan.watches = later.chance(300_000);
        let revoke_ns = if later.chance(250_000) { 3 * SECOND } else { 0 };
        let fault = |random: &mut Random, ppm: u64, mean: u64| if random.chance(ppm) { mean } else { 0 };
        plan.faults = Faults {
            kill_ns: fault(random, 250_000, 6 * SECOND),
            power_cut_ns: fault(random, 350_000, 5 * SECOND),
            stop_ns: fault(random, 100_000, 8 * SECOND),
            disk_error_ns: fault(random, 100_000, 8 * SECOND),
            disk_full_ns: fault(random, 100_000, 8 * SECOND),
            disk_slow_ns: fault(random, 200_000, 4 * SECOND),
            clock_jump_ns: fault(random, 200_000, 3 * SECOND),
            stall_ns: fault(random, 300_000, SECOND),
            device_restart_ns: fault(random, 200_000, 3 * SECOND),
            members_ns: fault(random, 300_000, 2 * SECOND),
            revoke_ns,
        };
        let mut last = Random::new(seed).stream("plan", 2);
        plan.renew_ppm = *last.pick(&[0, 0, 0, 100_000]);
        // Where the wall clock jumps, nobody can say when a token has to end.
        plan.token_life_s = if plan.faults.clock_jump_ns == 0 { *last.pick(&[0, 0, 0, 0, 8, 15]) } else { 0 };
        plan.older_acks_ppm = *Random::new(seed).stream("plan", 3).pick(&[0, 0, 0, 200_000]);
        plan
    }
}
