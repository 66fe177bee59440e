//! `vllm:lora_requests_info`: which adapters have requests now, for routers that send a request where its adapter is.
//!
//! vLLM has the *set* of adapters as the value of a label and the time as the value of the metric, and readers take the
//! line with the latest time. Written as an ordinary gauge that would be a new series for every set there ever was, so
//! it is no recorder's: the one line that is true now is written onto the page. Counting takes a lock at a request's
//! arrival, start and end, and none while it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::AdapterName;

/// Names in a label; those beyond it, in order of name, are left out.
const MAX_NAMES: usize = 128;

/// Requests by adapter. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoraRequests {
    adapters: Arc<Mutex<BTreeMap<AdapterName, Counts>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    waiting: usize,
    running: usize,
}

impl Counts {
    fn number(self, running: bool) -> usize {
        if running { self.running } else { self.waiting }
    }
}

/// RAII: a request for an adapter, waiting until it is said to have started. Dropped when it ends.
#[derive(Debug)]
pub struct LoraRequest {
    of: LoraRequests,
    name: AdapterName,
    running: bool,
}

impl LoraRequests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AdapterName, Counts>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request for this adapter waits.
    #[must_use]
    pub fn waiting(&self, name: &AdapterName) -> LoraRequest {
        self.lock().entry(name.clone()).or_default().waiting += 1;
        LoraRequest { of: self.clone(), name: name.clone(), running: false }
    }

    /// The metric in Prometheus' text format, as vLLM writes it. `max_lora` is how many adapters the device may hold.
    #[must_use]
    pub fn render(&self, max_lora: u32, now: SystemTime) -> String {
        let [waiting, running] = {
            let adapters = self.lock();
            [false, true].map(|running| {
                let has = |(name, counts): (&AdapterName, &Counts)| {
                    (counts.number(running) > 0).then(|| name.as_str().to_owned())
                };
                // Names of adapters have no character that the text format escapes, and no comma.
                adapters.iter().filter_map(has).take(MAX_NAMES).collect::<Vec<_>>().join(",")
            })
        };
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        format!(
            "# HELP vllm:lora_requests_info Running stats on lora requests.\n\
             # TYPE vllm:lora_requests_info gauge\n\
             vllm:lora_requests_info{{max_lora=\"{max_lora}\",waiting_lora_adapters=\"{waiting}\",\
             running_lora_adapters=\"{running}\"}} {seconds}\n"
        )
    }
}

impl LoraRequest {
    /// Its first step has begun.
    pub fn started(&mut self) {
        if !std::mem::replace(&mut self.running, true)
            && let Some(counts) = self.of.lock().get_mut(&self.name)
        {
            counts.waiting -= 1;
            counts.running += 1;
        }
    }
}

impl Drop for LoraRequest {
    fn drop(&mut self) {
        let mut adapters = self.of.lock();
        let Some(counts) = adapters.get_mut(&self.name) else { return };
        *if self.running { &mut counts.running } else { &mut counts.waiting } -= 1;
        if counts.running == 0 && counts.waiting == 0 {
            adapters.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(requests: &LoraRequests) -> String {
        let text = requests.render(64, UNIX_EPOCH + Duration::from_millis(1_500));
        text.lines().last().unwrap().to_owned()
    }

    fn waiting(requests: &LoraRequests, name: &str) -> LoraRequest {
        requests.waiting(&name.parse().unwrap())
    }

    #[test]
    fn the_line_is_the_one_that_vllm_writes_and_says_what_is_true_now() {
        let requests = LoraRequests::default();
        let empty = r#"vllm:lora_requests_info{max_lora="64",waiting_lora_adapters="",running_lora_adapters=""} 1.5"#;
        assert_eq!(line(&requests), empty);
        let (mut first, second) = (waiting(&requests, "sql"), waiting(&requests, "sql"));
        let other = waiting(&requests, "org/a");
        first.started();
        first.started();
        assert!(line(&requests).contains(r#"waiting_lora_adapters="org/a,sql",running_lora_adapters="sql""#));
        drop(second);
        assert!(line(&requests).contains(r#"waiting_lora_adapters="org/a",running_lora_adapters="sql""#));
        drop((first, other));
        assert_eq!(line(&requests), empty);
        assert!(requests.lock().is_empty(), "nothing stays of what has ended");
    }

    #[test]
    fn a_label_holds_a_bounded_number_of_names() {
        let requests = LoraRequests::default();
        let _many: Vec<_> = (0..500).map(|index| waiting(&requests, &format!("adapter-{index:03}"))).collect();
        assert_eq!(line(&requests).matches("adapter-").count(), MAX_NAMES);
    }
}
