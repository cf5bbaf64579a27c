//! What the store says, in memory and in its answers, against what the session knows.

use crate::world::{BLOCKS, BRANCH, CHUNKS, Looked, Reading, World};
use proto::message::{BlockState, Run, View};
use proto::{ChunkIndex, Generation, Payload};
use store::view::BlockView;

impl World {
    /// All blocks as memory has them.
    pub fn look(&self, view: View) -> Result<Vec<Looked>, String> {
        let mut out = Vec::new();
        for chunk in 0..CHUNKS {
            for b in 0..BLOCKS {
                if let Some((state, _)) = self.store.block(BRANCH, ChunkIndex(chunk), b, view) {
                    let value = self.model.value_of(state).ok_or(format!("unknown bytes in {chunk}.{b}"))?;
                    out.push(((chunk, b), value));
                }
            }
        }
        Ok(out)
    }
    pub fn check(&self) -> Result<(), String> {
        if !self.opened {
            return Ok(());
        }
        self.store.check();
        for (at, value) in self.look(View::Head)? {
            self.model.allows(at, View::Head, value, false)?;
        }
        self.check_views(false)?;
        if self.steps.is_multiple_of(8) {
            self.check_homes()?;
        }
        Ok(())
    }
    /// Sealed views do not change while they are kept, and are served only where they are whole.
    pub fn check_views(&self, flushed_only: bool) -> Result<(), String> {
        let Some((index, open, kept)) = self.store.kept(BRANCH) else { return Ok(()) };
        if index.0 > self.index || (index.0 < self.confirmed && self.created) {
            return Err(format!("list {index:?}, newest {}, confirmed {}", self.index, self.confirmed));
        }
        for g in 1..self.generation {
            let stays = Generation(g) >= open || kept.contains(Generation(g));
            if self.kept.contains(&g) && !stays {
                return Err(format!("{g} is withdrawn: {kept:?} below {open:?}"));
            }
            for chunk in 0..CHUNKS {
                let serves = self.store.serves(BRANCH, ChunkIndex(chunk), Generation(g));
                if serves && !self.held[chunk as usize].contains(&g) {
                    return Err(format!("view {g} of chunk {chunk} is served, and not whole"));
                }
            }
            if stays {
                for (at, value) in self.look(View::At(Generation(g)))? {
                    self.model.allows(at, View::At(Generation(g)), value, flushed_only)?;
                }
            }
        }
        Ok(())
    }
    /// At rest no extent stays of which no view sees a block.
    pub fn check_space(&self) -> Result<(), String> {
        let views: Vec<View> =
            self.kept.iter().map(|g| View::At(Generation(*g))).chain([View::Head]).collect();
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            let unseen = self.store.unseen_extents(BRANCH, chunk);
            if unseen > 0 {
                let (homes, bits) =
                    (self.store.extents(BRANCH, chunk), self.store.zero_extents(BRANCH, chunk));
                return Err(format!("{unseen} of {homes:?} {bits:?} stay: kept {:?}", self.kept));
            }
            for (extent, g) in self.store.extents(BRANCH, chunk) {
                let sees = |v: &View| {
                    let mut blocks = extent * 16..extent * 16 + 16;
                    blocks.any(|b| self.store.generation(BRANCH, chunk, b, *v) == Some(g))
                };
                if g.0 < self.generation && !views.iter().any(sees) {
                    return Err(format!("extent {extent} of {chunk} stays in {g}: kept {:?}", self.kept));
                }
            }
        }
        Ok(())
    }
    /// The bytes at home are those that the table speaks of, in every view that stays.
    pub fn check_homes(&self) -> Result<(), String> {
        let Some((_, open, kept)) = self.store.kept(BRANCH) else { return Ok(()) };
        let sealed = (1..self.generation).map(Generation).filter(|g| *g >= open || kept.contains(*g));
        for view in sealed.map(View::At).chain([View::Head]) {
            for (chunk, b) in (0..CHUNKS).flat_map(|c| (0..BLOCKS).map(move |b| (c, b))) {
                let at = ChunkIndex(chunk);
                let Some(offset) = self.store.home_offset_in(BRANCH, at, b, view) else { continue };
                let Some((BlockView::Data(sum), _)) = self.store.block(BRANCH, at, b, view) else {
                    continue;
                };
                let bytes = self.medium.get(offset, 1);
                if proto::record::Sum::of(bytes.bytes()) != sum {
                    return Err(format!("checksum at home of block {b} of chunk {chunk} in {view:?}"));
                }
            }
        }
        Ok(())
    }

    pub fn check_read(
        &self,
        r: &Reading,
        runs: &[Run],
        sums: usize,
        payload: &Payload,
    ) -> Result<(), String> {
        let (mut block, mut data) = (r.first, 0);
        for run in runs {
            for _ in 0..run.count {
                let value = match run.state {
                    BlockState::Data => {
                        let bytes = payload.block(data);
                        data += 1;
                        u64::from_le_bytes(bytes[..8].try_into().unwrap())
                    }
                    BlockState::Zero => 0,
                    BlockState::Absent => self.model.nothing,
                    BlockState::Bad => return Err(format!("bad block {block} of chunk {}", r.chunk)),
                };
                let h = self.model.visible((r.chunk, block), r.view);
                let floor = r.floors[(block - r.first) as usize];
                let allowed = h.iter().skip(floor).any(|w| w.value == value)
                    || (h.is_empty() && value == self.model.nothing);
                if !allowed {
                    return Err(format!("read of block {block} gives {value}, floor {floor} of {h:?}"));
                }
                block += 1;
            }
        }
        if data != payload.blocks() || data != sums {
            return Err("payload and runs differ".into());
        }
        Ok(())
    }
    /// Whatever lies above the durable mark that the replica reports must be reported.
    pub fn check_report(&self, report: &proto::message::Report) -> Result<(), String> {
        if report.marks.durable > self.durable {
            return Err(format!("durable mark {} above the true {}", report.marks.durable, self.durable));
        }
        for (at, h) in &self.model.blocks {
            let state = self.store.block(BRANCH, ChunkIndex(at.0), at.1, View::Head);
            let Some((state, _)) = state else { continue };
            let Some(value) = self.model.value_of(state) else { continue };
            let Some(last) = h.iter().rposition(|w| w.value == value) else { continue };
            // Zeroes look alike: the oldest of them that may be meant.
            let first = (0..last).rev().take_while(|i| h[*i].value == value).last().unwrap_or(last);
            let w = &h[first];
            let listed = report
                .runs
                .iter()
                .any(|r| r.chunk.0 == at.0 && (r.first..r.first + r.count).contains(&(at.1 / 16)));
            if state != BlockView::Absent && w.version > report.marks.durable && !listed {
                let v = w.version;
                return Err(format!("block {at:?} ({v} {state:?}) is not reported: {h:?}"));
            }
        }
        Ok(())
    }
}
