//! A fixed number of KV blocks, who holds them, and the order in which free ones are handed out again.
//!
//! Every operation is O(1): the free list is a doubly linked list inside arrays, because a prefix hit takes a block
//! out of its middle. The pool knows nothing of contents.

use crate::types::BlockId;

/// No neighbour in the free list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    refs: u32,
    /// Neighbours in the free list; meaningful only while `refs` is 0.
    previous: u32,
    next: u32,
}

/// Fixed set of blocks with reference counts and a free list in order of reuse.
#[derive(Debug)]
pub(crate) struct BlockPool {
    nodes: Vec<Node>,
    /// Handed out next.
    head: u32,
    /// Handed out last.
    tail: u32,
    num_free: usize,
}

impl BlockPool {
    /// `num_blocks` blocks, all free, handed out in ascending order.
    #[must_use]
    pub(crate) fn new(num_blocks: u32) -> Self {
        let empty = Node { refs: 0, previous: NONE, next: NONE };
        let mut pool = Self { nodes: vec![empty; num_blocks as usize], head: NONE, tail: NONE, num_free: 0 };
        for block in 0..num_blocks {
            pool.push_back(block);
        }
        pool
    }

    /// Blocks in all.
    #[must_use]
    pub(crate) fn num_blocks(&self) -> usize {
        self.nodes.len()
    }

    /// Blocks nobody holds.
    #[must_use]
    pub(crate) fn num_free(&self) -> usize {
        self.num_free
    }

    /// Blocks with a holder.
    #[must_use]
    pub(crate) fn num_used(&self) -> usize {
        self.nodes.len() - self.num_free
    }

    /// Holders of a block; 0 is free.
    ///
    /// # Panics
    /// If the block is not of this pool.
    #[must_use]
    pub(crate) fn refs(&self, block: BlockId) -> u32 {
        self.nodes[block.index()].refs
    }

    /// Take the first free block, with one holder. `None` when there is none.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        if self.head == NONE {
            return None;
        }
        let block = self.head;
        self.unlink(block);
        self.nodes[block as usize].refs = 1;
        Some(BlockId(block))
    }

    /// Add a holder; a free block leaves the free list.
    ///
    /// # Panics
    /// If the block is not of this pool.
    pub(crate) fn share(&mut self, block: BlockId) {
        if self.nodes[block.index()].refs == 0 {
            self.unlink(block.0);
        }
        self.nodes[block.index()].refs += 1;
    }

    /// Remove a holder. Without holders the block is free: reused last where `keep`, first otherwise.
    ///
    /// # Panics
    /// If nobody holds the block or it is not of this pool: two owners of one block would mix two requests' KV.
    pub(crate) fn release(&mut self, block: BlockId, keep: bool) {
        let node = &mut self.nodes[block.index()];
        assert!(node.refs > 0, "block {} is released more often than it was taken", block.0);
        node.refs -= 1;
        if node.refs == 0 {
            if keep { self.push_back(block.0) } else { self.push_front(block.0) }
        }
    }

    fn push_back(&mut self, block: u32) {
        self.link(block, self.tail, NONE);
    }

    fn push_front(&mut self, block: u32) {
        self.link(block, NONE, self.head);
    }

    fn link(&mut self, block: u32, previous: u32, next: u32) {
        self.set_next(previous, block);
        self.set_previous(next, block);
        let node = &mut self.nodes[block as usize];
        (node.previous, node.next) = (previous, next);
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Node { previous, next, .. } = self.nodes[block as usize];
        self.set_next(previous, next);
        self.set_previous(next, previous);
        self.num_free -= 1;
    }

    fn set_next(&mut self, of: u32, to: u32) {
        match of {
            NONE => self.head = to,
            _ => self.nodes[of as usize].next = to,
        }
    }

    fn set_previous(&mut self, of: u32, to: u32) {
        match of {
            NONE => self.tail = to,
            _ => self.nodes[of as usize].previous = to,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Allocate,
        Share(u32),
        Release { block: u32, keep: bool },
    }

    fn ops(blocks: u32) -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => Just(Op::Allocate),
            2 => (0..blocks).prop_map(Op::Share),
            3 => (0..blocks, any::<bool>()).prop_map(|(block, keep)| Op::Release { block, keep }),
        ];
        proptest::collection::vec(op, 0..200)
    }

    proptest! {
        #[test]
        fn the_pool_agrees_with_a_plain_list(blocks in 1u32..7, ops in ops(6)) {
            let mut pool = BlockPool::new(blocks);
            let mut free: VecDeque<u32> = (0..blocks).collect();
            let mut refs = vec![0u32; blocks as usize];
            for op in ops {
                match op {
                    Op::Allocate => {
                        let expected = free.pop_front();
                        if let Some(block) = expected {
                            refs[block as usize] = 1;
                        }
                        prop_assert_eq!(pool.allocate(), expected.map(BlockId));
                    }
                    Op::Share(block) if block < blocks => {
                        free.retain(|other| *other != block);
                        refs[block as usize] += 1;
                        pool.share(BlockId(block));
                    }
                    Op::Release { block, keep } if block < blocks && refs[block as usize] > 0 => {
                        refs[block as usize] -= 1;
                        if refs[block as usize] == 0 {
                            if keep { free.push_back(block) } else { free.push_front(block) }
                        }
                        pool.release(BlockId(block), keep);
                    }
                    _ => {}
                }
                prop_assert_eq!(pool.num_free(), free.len());
                prop_assert_eq!(pool.num_used() + pool.num_free(), pool.num_blocks());
                for block in 0..blocks {
                    prop_assert_eq!(pool.refs(BlockId(block)), refs[block as usize]);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn releasing_a_free_block_is_a_panic() {
        BlockPool::new(1).release(BlockId(0), true);
    }
}
