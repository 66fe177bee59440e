//! Where log lines go: a bounded queue, and one thread that writes it out.
//!
//! Whoever logs never waits for a disk or for the reader of a pipe, and never hears of their failures: a line that does
//! not fit the queue or cannot be written is lost and counted, and once lines get through again one of them says how
//! many were lost. Only the writing thread waits, and nothing waits for it but [`LogSink::flush`], which has a limit.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait to be written.
const QUEUE_BYTES: usize = 1 << 20;

/// Takes lines and returns at once. Cheap to clone.
#[derive(Clone)]
pub struct LogSink {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// A line has come.
    filled: Condvar,
    /// The last line was written, or lost.
    settled: Condvar,
    max_bytes: usize,
    lost: AtomicU64,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line is in the hands of the writing thread.
    writing: bool,
}

/// How many lines of the log were lost since start. Cheap to clone.
#[derive(Clone)]
pub struct LostLines {
    shared: Arc<Shared>,
}

impl LostLines {
    /// The number.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl LogSink {
    /// A sink on standard error. That lines were lost is logged as a warning.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub fn stderr() -> io::Result<Self> {
        Self::start(stderr(), QUEUE_BYTES, |lines| tracing::warn!(lines, "lines of the log were lost"))
    }

    /// A sink on `target` whose queue holds `max_bytes`. `recovered` is told how many lines were lost since it was last
    /// told, once everything that waited is written.
    pub(super) fn start(
        target: impl Write + Send + 'static,
        max_bytes: usize,
        recovered: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            settled: Condvar::new(),
            max_bytes,
            lost: AtomicU64::new(0),
        });
        let writing = Arc::clone(&shared);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writing.write_out(target, recovered))?;
        Ok(Self { shared })
    }

    /// Queue one line, its end included.
    pub fn line(&self, line: &str) {
        self.shared.push(line.as_bytes());
    }

    /// Wait until everything that was queued is written or lost, at most for `limit`. False: the limit came first.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let busy = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        let waited = self.shared.settled.wait_timeout_while(self.shared.lock(), limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The number of lines lost.
    #[must_use]
    pub fn lost(&self) -> LostLines {
        LostLines { shared: Arc::clone(&self.shared) }
    }
}

/// Standard error without std's lock, which a write that hangs would hold for ever.
#[cfg(unix)]
fn stderr() -> Box<dyn Write + Send> {
    use std::os::fd::AsFd;
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(copy) => Box::new(std::fs::File::from(copy)),
        Err(_) => Box::new(io::stderr()),
    }
}

#[cfg(not(unix))]
fn stderr() -> Box<dyn Write + Send> {
    Box::new(io::stderr())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.bytes.saturating_add(line.len()) > self.max_bytes {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.filled.notify_one();
    }

    /// The next line; waits for it.
    fn take(&self) -> Vec<u8> {
        let empty = |queue: &mut Queue| queue.lines.is_empty();
        let mut queue = self.filled.wait_while(self.lock(), empty).unwrap_or_else(PoisonError::into_inner);
        let line = queue.lines.pop_front().unwrap_or_default();
        queue.bytes -= line.len();
        queue.writing = true;
        line
    }

    /// The line in hand is done with. True: nothing waits behind it.
    fn done(&self) -> bool {
        let mut queue = self.lock();
        queue.writing = false;
        let idle = queue.lines.is_empty();
        if idle {
            self.settled.notify_all();
        }
        idle
    }

    fn write_out(&self, mut target: impl Write, recovered: impl Fn(u64)) {
        let mut told = 0;
        loop {
            let line = self.take();
            let written = target.write_all(&line).and_then(|()| target.flush()).is_ok();
            if !written {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            let idle = self.done();
            let lost = self.lost.load(Ordering::Relaxed);
            if written && idle && lost > told {
                recovered(lost - told);
                told = lost;
            }
        }
    }
}

/// What the formatter writes one whole line into.
pub struct LineWriter<'a> {
    shared: &'a Shared,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for LogSink {
    type Writer = LineWriter<'w>;

    fn make_writer(&'w self) -> LineWriter<'w> {
        LineWriter { shared: &self.shared }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Every write waits for the test to say how it ends.
    struct Scripted {
        began: Sender<Vec<u8>>,
        verdicts: Receiver<io::Result<()>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.began.send(bytes.to_vec()).unwrap();
            self.verdicts.recv().unwrap().map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        sink: LogSink,
        began: Receiver<Vec<u8>>,
        verdicts: SyncSender<io::Result<()>>,
        recovered: Receiver<u64>,
    }

    fn log(max_bytes: usize) -> Log {
        let (began_sender, began) = channel();
        let (verdicts, verdict_receiver) = sync_channel(64);
        let (recovered_sender, recovered) = channel();
        let target = Scripted { began: began_sender, verdicts: verdict_receiver };
        let sink = LogSink::start(target, max_bytes, move |lines| recovered_sender.send(lines).unwrap()).unwrap();
        Log { sink, began, verdicts, recovered }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let log = log(100);
        log.sink.line("one\n");
        log.sink.line("two\n");
        log.verdicts.send(Ok(())).unwrap();
        log.verdicts.send(Ok(())).unwrap();
        assert!(log.sink.flush(LONG));
        assert_eq!([log.began.recv().unwrap(), log.began.recv().unwrap()], [b"one\n", b"two\n"]);
        assert_eq!(log.sink.lost().count(), 0);
    }

    #[test]
    fn who_logs_never_waits_and_what_is_lost_is_counted_and_told_once() {
        let log = log(12);
        log.sink.line("hangs\n");
        assert_eq!(log.began.recv().unwrap(), b"hangs\n");
        // The write hangs: 12 bytes may wait behind it.
        for _ in 0..5 {
            log.sink.line("waits\n");
        }
        assert_eq!(log.sink.lost().count(), 3);
        assert!(!log.sink.flush(Duration::ZERO), "a flush has a limit");
        for _ in 0..3 {
            log.verdicts.send(Ok(())).unwrap();
        }
        assert_eq!(log.recovered.recv().unwrap(), 3);
        log.sink.line("after\n");
        log.verdicts.send(Ok(())).unwrap();
        assert!(log.sink.flush(LONG));
        assert!(log.recovered.try_recv().is_err(), "told once");
    }

    #[test]
    fn a_full_disk_and_a_closed_pipe_lose_lines_and_nothing_else() {
        let log = log(100);
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::BrokenPipe, io::ErrorKind::WouldBlock] {
            log.sink.line("lost\n");
            log.verdicts.send(Err(kind.into())).unwrap();
        }
        assert!(log.sink.flush(LONG), "what cannot be written does not hold up the end");
        assert_eq!(log.sink.lost().count(), 3);
        assert!(log.recovered.try_recv().is_err(), "there is nobody to tell");
        log.sink.line("space again\n");
        log.verdicts.send(Ok(())).unwrap();
        assert_eq!(log.recovered.recv().unwrap(), 3);
    }
}
