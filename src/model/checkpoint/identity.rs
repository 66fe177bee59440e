//! What base a checkpoint is: a digest of the content of its weights, and a cheap sign that its files are still those that
//! were digested.
//!
//! The digest is over every tensor by name: dtype, shape and all bytes, so that two fine-tunes of one architecture that
//! differ in a single weight differ in it. How the tensors are cut into files does not count, nor do config.json and what a
//! GGUF file says beside its tensors: how a base is run (context, rope scaling) is the operator's choice, which base it is, is not. A tensor enters as the sha256
//! of the sha256s of its pieces, so that any number of threads can share the work.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use super::super::ModelError;
use super::super::source::WeightFile;
use super::Checkpoint;
use crate::types::BaseDigest;

/// Bytes hashed as one piece. Part of the digest's definition.
const PIECE: u64 = 4 << 20;

/// A piece of a tensor: where it lies in a file.
#[derive(Clone, Copy)]
struct Piece {
    file: usize,
    start: u64,
    end: u64,
}

impl Checkpoint {
    /// Digest the weights with this many threads. Blocks: every byte is read.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Truncated`], [`ModelError::Changed`].
    pub fn content_digest(&self, threads: usize) -> Result<BaseDigest, ModelError> {
        let mut pieces = Vec::new();
        let mut counts = Vec::with_capacity(self.tensors.len());
        for place in self.tensors.values() {
            let (start, end) = (place.stored.range.start, place.stored.range.end);
            let starts = (start..end).step_by(PIECE as usize);
            counts.push((end - start).div_ceil(PIECE) as usize);
            pieces.extend(starts.map(|at| Piece { file: place.file, start: at, end: end.min(at + PIECE) }));
        }
        let mut digests = self.hash(&pieces, threads)?.into_iter();
        self.files.iter().try_for_each(WeightFile::check_unchanged)?;
        let mut digest = Sha256::new_with_prefix(b"polydelta base content 1\0");
        digest.update((self.tensors.len() as u64).to_le_bytes());
        for ((name, place), count) in self.tensors.iter().zip(counts) {
            let form = place.stored.form();
            for text in [name, &form] {
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text.as_bytes());
            }
            let mut content = Sha256::new();
            digests.by_ref().take(count).for_each(|piece| content.update(piece));
            digest.update(content.finalize());
        }
        Ok(BaseDigest(digest.finalize().into()))
    }

    /// Equal as long as the weight files are the same and nobody has written to them: devices, inodes, sizes and times.
    ///
    /// # Errors
    /// [`ModelError::Read`].
    pub fn files_sign(&self) -> Result<String, ModelError> {
        let mut digest = Sha256::new_with_prefix(b"polydelta base files 1\0");
        for file in &self.files {
            file.stamps()?.iter().for_each(|number| digest.update(number.to_le_bytes()));
        }
        Ok(hex::encode(digest.finalize()))
    }

    /// The sha256 of each piece, in order.
    fn hash(&self, pieces: &[Piece], threads: usize) -> Result<Vec<[u8; 32]>, ModelError> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let (mut done, mut buffer) = (Vec::new(), Vec::new());
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = pieces.get(index).filter(|_| !failed.load(Ordering::Relaxed)) else {
                    return Ok(done);
                };
                buffer.resize((piece.end - piece.start) as usize, 0);
                if let Err(error) = self.files[piece.file].read_at(&mut buffer, piece.start) {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                done.push((index, <[u8; 32]>::from(Sha256::digest(&buffer))));
            }
        };
        let parts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.clamp(1, 64)).map(|_| scope.spawn(work)).collect();
            // A worker does not panic; if one did, its pieces are missing and found to be so below.
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Vec<_>>()
        });
        let mut digests = vec![None; pieces.len()];
        for part in parts {
            for (index, digest) in part? {
                digests[index] = Some(digest);
            }
        }
        let missing = || ModelError::Read {
            path: self.path.clone(),
            source: io::Error::other("a thread that read it has ended"),
        };
        digests.into_iter().map(|digest| digest.ok_or_else(missing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

    use std::path::Path;

    use super::*;

    const BIG: usize = 5 << 20;

    fn tensors() -> BTreeMap<&'static str, Vec<u8>> {
        let big = (0..BIG).map(|at| (at * 7 + at / 4096) as u8).collect();
        BTreeMap::from([("a.weight", vec![1; 64]), ("b.weight", big), ("c.weight", vec![3; 64])])
    }

    fn write(path: &Path, tensors: &[(&str, &[u8])]) {
        let views = tensors.iter().map(|(name, bytes)| {
            (name.to_string(), TensorView::new(Dtype::BF16, vec![bytes.len() / 64, 32], bytes).unwrap())
        });
        serialize_to_file(views, None, path).unwrap();
    }

    fn digest_of(dir: &Path, threads: usize) -> Result<BaseDigest, ModelError> {
        std::fs::write(dir.join("config.json"), b"{}").unwrap();
        Checkpoint::open(dir)?.content_digest(threads)
    }

    fn whole(tensors: &BTreeMap<&str, Vec<u8>>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let list: Vec<_> = tensors.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        write(&dir.path().join("model.safetensors"), &list);
        dir
    }

    #[test]
    fn the_digest_is_of_the_content_however_it_is_cut_into_files_and_shared_among_threads() {
        let tensors = tensors();
        let one = whole(&tensors);
        let digest = digest_of(one.path(), 1).unwrap();
        assert_eq!(digest_of(one.path(), 7).unwrap(), digest);
        let cut = tempfile::tempdir().unwrap();
        let part = |file: &str, names: &[&'static str]| {
            let list: Vec<_> = names.iter().map(|name| (*name, tensors[name].as_slice())).collect();
            write(&cut.path().join(file), &list);
        };
        part("model-1.safetensors", &["b.weight"]);
        part("model-2.safetensors", &["c.weight", "a.weight"]);
        let index = r#"{"weight_map":{"a.weight":"model-2.safetensors","b.weight":"model-1.safetensors"}}"#;
        std::fs::write(cut.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(digest_of(cut.path(), 2).unwrap(), digest);
    }

    #[test]
    fn one_bit_of_one_weight_makes_another_base() {
        let base = digest_of(whole(&tensors()).path(), 1).unwrap();
        for (name, at) in [("a.weight", 0), ("b.weight", BIG - 1), ("b.weight", PIECE as usize), ("c.weight", 63)] {
            let mut changed = tensors();
            changed.get_mut(name).unwrap()[at] ^= 1;
            assert_ne!(digest_of(whole(&changed).path(), 1).unwrap(), base, "{name} {at}");
        }
        let mut renamed = tensors();
        let moved = renamed.remove("c.weight").unwrap();
        renamed.insert("d.weight", moved);
        assert_ne!(digest_of(whole(&renamed).path(), 1).unwrap(), base);
    }

    #[test]
    fn the_sign_of_the_files_follows_what_is_written_to_them() {
        let dir = whole(&tensors());
        std::fs::write(dir.path().join("config.json"), b"{}").unwrap();
        let sign = Checkpoint::open(dir.path()).and_then(|found| found.files_sign()).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).and_then(|found| found.files_sign()).unwrap(), sign);
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(dir.path().join("new"), bytes).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_ne!(
            Checkpoint::open(dir.path()).and_then(|found| found.files_sign()).unwrap(),
            sign,
            "the same bytes in another file"
        );
    }

    #[test]
    fn a_file_that_changes_under_the_reader_is_an_error() {
        let dir = whole(&tensors());
        std::fs::write(dir.path().join("config.json"), b"{}").unwrap();
        let path = dir.path().join("model.safetensors");
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(checkpoint.content_digest(2), Err(ModelError::Truncated { .. })));
    }
}
