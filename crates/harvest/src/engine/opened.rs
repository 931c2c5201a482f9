//! The harvest that this process has open: its model is loaded once, whatever the number of tasks.

use std::sync::{Arc, Mutex, PoisonError};

use tch_lens::tch::Device;

use super::HarvestReference;
use crate::{Job, Progress, Result, Store};

/// What is called after each shard.
pub(super) type OnProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

#[derive(Clone)]
pub(super) struct Opened {
    pub(super) job: Job,
    pub(super) progress: OnProgress,
}

struct Process {
    device: Device,
    /// The last one only: two models may not fit on a device. Harvests whose caller holds the job come in front of it.
    last: Option<(HarvestReference, Opened)>,
    held: Vec<(HarvestReference, Opened)>,
}

static PROCESS: Mutex<Process> = Mutex::new(Process { device: Device::Cpu, last: None, held: Vec::new() });

/// Chooses the device on which tasks of this process load models.
#[cfg(feature = "cluster")]
pub(super) fn set_device(device: Device) {
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner).device = device;
}

/// The open harvest, which is opened now if it is not the last one. Others wait meanwhile.
pub(super) fn open(reference: &HarvestReference) -> Result<Opened> {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = process.held.iter().rev().chain(&process.last).find(|(known, _)| known == reference);
    if let Some((_, opened)) = known {
        return Ok(opened.clone());
    }
    process.last = None;
    let store = Store::open(&reference.store)?;
    reference.check(&Job::manifest_of(&store)?)?;
    tracing::info!(store = reference.store, "loads the model of a harvest");
    let opened = Opened { job: Job::open(&store, process.device)?, progress: Arc::new(|_| ()) };
    process.last = Some((reference.clone(), opened.clone()));
    Ok(opened)
}

/// Keeps a harvest open that the caller has, until the guard is dropped.
pub(super) fn hold(job: &Job, progress: OnProgress) -> Result<Held> {
    let reference = HarvestReference::of(job)?;
    let opened = Opened { job: job.clone(), progress };
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner).held.push((reference.clone(), opened));
    Ok(Held { reference })
}

pub(super) struct Held {
    pub(super) reference: HarvestReference,
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &mut PROCESS.lock().unwrap_or_else(PoisonError::into_inner).held;
        if let Some(at) = held.iter().rposition(|(known, _)| *known == self.reference) {
            held.remove(at);
        }
    }
}
