//! What of an upload can be checked before all of it has come: its config, and the header of its weights. A mistake
//! there is told when it has arrived, and not after a gigabyte.

use super::super::files::FileRole;

/// Bytes of a safetensors file that say how long its header is.
const LENGTH: usize = 8;

/// Longest config, and longest header, that is kept for an early look; longer ones are checked at the end.
const MAX_BYTES: usize = (1 << 20) + LENGTH;

/// The beginning of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadHead {
    /// `adapter_config.json`, once it is whole.
    pub config: Option<Vec<u8>>,
    /// The first bytes of `adapter_model.safetensors`: the length of the header and the header, or the length alone
    /// where the header cannot be as long as that.
    pub weights: Option<WeightsHead>,
}

/// The beginning of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsHead {
    /// The first bytes.
    pub bytes: Vec<u8>,
    /// Declared size of the whole file.
    pub file_bytes: u64,
}

/// Keeps the beginnings until they have been looked at.
#[derive(Debug, Default)]
pub(super) struct HeadKeeper {
    config: Beginning,
    weights: Beginning,
}

#[derive(Debug, Default)]
struct Beginning {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Still to come.
    #[default]
    Coming,
    /// Whole, and not looked at yet.
    Whole,
    /// Looked at.
    Seen,
    /// Too long, or no memory: left to the check at the end.
    GivenUp,
}

impl Beginning {
    /// Append what belongs to the first `wanted` bytes. A chunk's end may lie beyond.
    fn take(&mut self, offset: u64, data: &[u8], wanted: usize) {
        let have = self.bytes.len();
        if self.state != State::Coming || offset != have as u64 {
            return;
        }
        let data = &data[..data.len().min(wanted.saturating_sub(have))];
        if wanted > MAX_BYTES || self.bytes.try_reserve(data.len()).is_err() {
            *self = Self { bytes: Vec::new(), state: State::GivenUp };
            return;
        }
        self.bytes.extend_from_slice(data);
        if self.bytes.len() == wanted {
            self.state = State::Whole;
        }
    }

    fn is_there(&self) -> bool {
        matches!(self.state, State::Whole | State::Seen)
    }
}

impl HeadKeeper {
    /// A chunk of a file of `size` bytes has been taken at `offset`.
    pub(super) fn take(&mut self, role: FileRole, offset: u64, data: &[u8], size: u64) {
        match role {
            FileRole::Config => self.config.take(offset, data, usize::try_from(size).unwrap_or(usize::MAX)),
            FileRole::Weights => self.take_weights(offset, data, size),
            FileRole::ChatTemplate | FileRole::Tokenizer | FileRole::Ignored => {}
        }
    }

    fn take_weights(&mut self, offset: u64, data: &[u8], size: u64) {
        let weights = &mut self.weights;
        if weights.bytes.len() < LENGTH {
            let before = weights.bytes.len();
            weights.take(offset, data, LENGTH);
            let Some(length) = weights.bytes.first_chunk::<LENGTH>() else { return };
            let length = u64::from_le_bytes(*length);
            if length > size.saturating_sub(LENGTH as u64) || length > (MAX_BYTES - LENGTH) as u64 {
                // The header cannot be that long: the length alone shows it.
                return;
            }
            weights.state = State::Coming;
            let taken = weights.bytes.len() - before;
            return self.take_weights(offset + taken as u64, &data[taken..], size);
        }
        let length = weights.bytes.first_chunk::<LENGTH>().map_or(0, |length| u64::from_le_bytes(*length));
        weights.take(offset, data, LENGTH.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)));
    }

    /// The beginning as it is now, if more of it is whole than the last time.
    pub(super) fn news(&mut self, file_bytes: u64) -> Option<UploadHead> {
        let both = [&mut self.config, &mut self.weights];
        if both.iter().all(|beginning| beginning.state != State::Whole) {
            return None;
        }
        for beginning in both.into_iter().filter(|beginning| beginning.state == State::Whole) {
            beginning.state = State::Seen;
        }
        let finished = |beginning: &Beginning| matches!(beginning.state, State::Seen | State::GivenUp);
        // Nothing is looked at again once both have been.
        let last = finished(&self.config) && finished(&self.weights);
        let bytes = |beginning: &mut Beginning| {
            let there = beginning.is_there();
            there.then(|| if last { std::mem::take(&mut beginning.bytes) } else { beginning.bytes.clone() })
        };
        let config = bytes(&mut self.config);
        let weights = bytes(&mut self.weights).map(|bytes| WeightsHead { bytes, file_bytes });
        Some(UploadHead { config, weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(header: &[u8], data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header, &vec![7; data]].concat()
    }

    /// Take `file` in pieces; the heads that come out, each with the number of bytes it took.
    fn taken(
        keeper: &mut HeadKeeper,
        role: FileRole,
        file: &[u8],
        size: u64,
        piece: usize,
    ) -> Vec<(usize, UploadHead)> {
        let mut heads = Vec::new();
        for (index, chunk) in file.chunks(piece).enumerate() {
            keeper.take(role, (index * piece) as u64, chunk, size);
            heads.extend(keeper.news(size).map(|head| (index * piece + chunk.len(), head)));
        }
        heads
    }

    #[test]
    fn a_header_is_there_as_soon_as_its_last_byte_has_come() {
        let file = weights(b"{\"header\":1}", 1000);
        for piece in 1..40 {
            let mut keeper = HeadKeeper::default();
            let heads = taken(&mut keeper, FileRole::Weights, &file, file.len() as u64, piece);
            assert_eq!(heads.len(), 1, "{piece}");
            let (after, head) = &heads[0];
            assert_eq!(*after, 20usize.next_multiple_of(piece).min(file.len()), "{piece}");
            let expected = WeightsHead { bytes: file[..20].to_vec(), file_bytes: file.len() as u64 };
            assert_eq!(head, &UploadHead { config: None, weights: Some(expected) });
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_enough() {
        for length in [u64::MAX, (1 << 20) + 1, 993] {
            let file = [&length.to_le_bytes()[..], &[b'{'; 992]].concat();
            let mut keeper = HeadKeeper::default();
            let heads = taken(&mut keeper, FileRole::Weights, &file, 1000, 3);
            assert_eq!(heads.len(), 1, "{length}");
            assert_eq!((heads[0].0, heads[0].1.weights.as_ref().unwrap().bytes.len()), (9, 8), "{length}");
        }
    }

    #[test]
    fn the_second_of_the_two_brings_both_in_whichever_order_they_come() {
        let file = weights(b"{}", 10);
        let mut keeper = HeadKeeper::default();
        assert_eq!(taken(&mut keeper, FileRole::Config, b"config", 6, 4)[0].1.config.as_deref(), Some(&b"config"[..]));
        let both = taken(&mut keeper, FileRole::Weights, &file, 20, 20).remove(0).1;
        assert!(both.config.is_some() && both.weights.is_some());
        assert!(keeper.config.bytes.is_empty() && keeper.weights.bytes.is_empty(), "nothing is kept any longer");

        let mut keeper = HeadKeeper::default();
        assert!(taken(&mut keeper, FileRole::Weights, &file, 20, 20)[0].1.config.is_none());
        let both = taken(&mut keeper, FileRole::Config, b"config", 6, 6).remove(0).1;
        assert!(both.config.is_some() && both.weights.is_some());
    }

    #[test]
    fn a_config_too_long_for_an_early_look_is_left_to_the_end() {
        let mut keeper = HeadKeeper::default();
        let size = 2 << 20;
        assert_eq!(taken(&mut keeper, FileRole::Config, &vec![b'x'; size], size as u64, 1 << 20), []);
        assert!(keeper.config.bytes.is_empty());
        let file = weights(b"{}", 10);
        assert!(taken(&mut keeper, FileRole::Weights, &file, 20, 20)[0].1.weights.is_some());
        assert!(keeper.weights.bytes.is_empty());
    }
}
