//! A clone reads what it has not from its parents (6): `chain` asks their levels; here is what is asked, and for whom.
//!
//! Owns the chain and what waits for it. What is absent in the branch itself is what the nearest level has, and zero
//! only where the last one has said that it has nothing, or its size has. What nobody could be asked about waits; the
//! rest of the session does not. The views of the parents never change, so no lease of theirs is needed: a read that
//! is put together is as old as its look into the own branch, and that is what the own leases are held for (5.5).
//! Never touched from here: reconciliation, resync, repair and seals. They are of what the branch itself has.

use crate::chain::{Chain, Out, Want};
use crate::presence::{At, BLOCKS, DEEPEST, Depths, NOWHERE, Presence};
use crate::reads::{Part, Segment};
use crate::session::{Phase, Session, What};
use proto::control::{MetaAnswer, SessionKind};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, Reply, Request, Run, View};
use proto::{BlockRange, Generation, Level, NodeId, Time, Version};
use slab::Slab;

#[derive(Debug)]
pub(crate) struct Parents {
    levels: Vec<Level>,
    /// From the first need on; a guest's session needs it as soon as it serves.
    chain: Option<Chain>,
    pub presence: Presence,
    /// By the chain's tag.
    under: Slab<Under>,
}

#[derive(Debug)]
struct Under {
    since: Time,
    what: Asked,
}

#[derive(Debug)]
enum Asked {
    Fetch(usize),
    Map(Box<Layers>),
    Depths(Depths),
}

/// Block status that is put together, block by block.
#[derive(Debug)]
struct Layers {
    op: usize,
    chunk: u32,
    range: BlockRange,
    blocks: Vec<Run>,
    level: usize,
}

impl Layers {
    /// What is still to be found.
    fn missing(&self) -> Option<BlockRange> {
        let absent = |r: &Run| r.state == BlockState::Absent;
        let first = self.blocks.iter().position(absent)?;
        let last = self.blocks.iter().rposition(absent)?;
        let at = |i: usize| self.range.first + u32::try_from(i).expect("at most 4,096 blocks");
        Some(BlockRange::new(at(first), at(last) - at(first) + 1))
    }
    fn found(&mut self, p: &Part) {
        for block in p.first..p.first + p.count {
            let run = &mut self.blocks[(block - self.range.first) as usize];
            if run.state == BlockState::Absent {
                *run = Run { count: 1, state: p.state, version: p.version, generation: Generation(0) };
            }
        }
    }
    fn runs(self) -> Vec<Run> {
        let mut runs: Vec<Run> = vec![];
        for b in self.blocks {
            match runs.last_mut() {
                Some(l) if (l.state, l.version, l.generation) == (b.state, b.version, b.generation) => {
                    l.count += 1;
                }
                _ => runs.push(b),
            }
        }
        runs
    }
}

impl Parents {
    /// None: the branch has no parent, and absent is zero.
    pub fn new(levels: &[Level]) -> Option<Box<Parents>> {
        let parents = Parents {
            levels: levels.to_vec(),
            chain: None,
            presence: Presence::default(),
            under: Slab::new(),
        };
        (!levels.is_empty()).then(|| Box::new(parents))
    }
    pub fn wake(&self) -> Time {
        self.chain.as_ref().map_or(Time::FAR, Chain::next_wake)
    }
    pub fn is_quiet(&self) -> bool {
        self.chain.as_ref().is_none_or(Chain::is_quiet)
    }
}

impl Session {
    /// The chain, and everything that is asked of it.
    fn chain(&mut self) -> (&mut Chain, &mut Slab<Under>) {
        let p = self.parents.as_mut().expect("only a clone asks its parents");
        let chain = p.chain.get_or_insert_with(|| {
            let mut chain = Chain::new(self.me, self.geometry.chunk_shift, &p.levels, self.now);
            if self.bugs.has(|b| b.parent_head) {
                chain.read_heads();
            }
            for n in self.nodes.iter().filter(|n| n.connection.is_some()) {
                chain.connected(self.now, n.id);
            }
            chain
        });
        (chain, &mut p.under)
    }

    /// A link came up, or broke: nothing that was asked on an older one is answered.
    pub(crate) fn parents_linked(&mut self, node: NodeId, up: bool) {
        let now = self.now;
        let Some(chain) = self.parents.as_mut().and_then(|p| p.chain.as_mut()) else { return };
        chain.disconnected(now, node);
        if up {
            chain.connected(now, node);
        }
    }
    pub(crate) fn parents_reply(&mut self, token: u64, reply: Reply) {
        let now = self.now;
        if let Some(chain) = self.parents.as_mut().and_then(|p| p.chain.as_mut()) {
            chain.reply(now, token, reply);
        }
    }
    pub(crate) fn parents_placed(&mut self, token: u64, answer: &MetaAnswer) {
        let now = self.now;
        if let Some(chain) = self.parents.as_mut().and_then(|p| p.chain.as_mut()) {
            chain.meta(now, token, answer);
        }
    }

    /// Pushes the chain, and hands out what it has fetched.
    pub(crate) fn push_parents(&mut self) {
        self.let_parents_go();
        if self.parents.is_none() {
            return;
        }
        if self.phase == Phase::Serving && self.attached.kind == SessionKind::Guest {
            // the places are asked for before anybody reads: so reads go on without a leader of metad
            self.chain();
        }
        let now = self.now;
        if let Some(chain) = self.parents.as_mut().and_then(|p| p.chain.as_mut())
            && now >= chain.next_wake()
        {
            chain.push(now);
        }
        while let Some(out) = self.parents.as_mut().and_then(|p| p.chain.as_mut()).and_then(Chain::poll) {
            match out {
                Out::Send { node, frame } => self.effects.push_back(crate::Effect::Send { node, frame }),
                Out::Meta { token, request } => {
                    self.effects.push_back(crate::Effect::Meta { token, request });
                }
                Out::Done { tag, parts } => {
                    let parts = parts.expect("a parent's view is never taken for gone");
                    let p = self.parents.as_mut().expect("its chain has spoken");
                    let what = p.under.remove(tag).what;
                    self.parents_gave(what, parts);
                }
                // It is kept while it has forks: who says that he has it not may have it later. It waits.
                Out::Doubted => {}
            }
        }
    }

    /// The tie is cut: nothing is absent any more, and whatever was asked before that is answered (`ask_cut`).
    fn let_parents_go(&mut self) {
        if self.parents.is_none() || self.attached.views.tied {
            return;
        }
        if self.parents_waited_for(true).or(self.parents_waited_for(false)).is_none() {
            self.drop_parents();
            self.parents = None;
        }
    }

    fn parents_gave(&mut self, what: Asked, parts: Vec<Part>) {
        match what {
            Asked::Fetch(fetch) => {
                self.fetches[fetch].found(parts);
                self.segment_done(fetch);
            }
            Asked::Map(mut layers) => {
                parts.iter().for_each(|p| layers.found(p));
                layers.level += 1;
                self.push_layers(layers);
            }
            Asked::Depths(mut depths) => {
                parts.iter().for_each(|p| depths.found(p.first, p.count, p.state));
                let levels = self.parents.as_ref().map_or(0, |p| p.levels.len());
                match depths.next(levels) {
                    Some(range) => self.ask_depths(depths, range),
                    None => {
                        let (at, nearest) = depths.done();
                        let p = self.parents.as_mut().expect("a clone");
                        p.presence.depth_answered(at, nearest);
                    }
                }
            }
        }
    }

    // ------------------------------------------------------------------ reads

    /// Blocks of the branch, as a guest sees them: extents that the branch itself has, and those that it has not.
    pub(crate) fn fetch_layers(&mut self, fetch: usize, chunk: u32, range: BlockRange) {
        self.learn_sections(chunk, range);
        for (run, own) in runs_by(range, |block| self.parents().presence.has(chunk, block)) {
            self.fetches[fetch].more(1);
            if own {
                self.fetch_segment(Segment { fetch, range: run, tried: 0 });
            } else {
                self.fetch_parents(fetch, chunk, run);
            }
        }
        self.segment_done(fetch);
    }

    /// A segment of a fetch that is absent in the branch itself.
    pub(crate) fn fetch_parents(&mut self, fetch: usize, chunk: u32, range: BlockRange) {
        let now = self.now;
        for (run, nearest) in runs_by(range, |block| self.parents().presence.nearest(chunk, block)) {
            if nearest == NOWHERE {
                let (first, count) = (run.first, run.count);
                let (state, version) = (BlockState::Absent, Version::ZERO);
                self.fetches[fetch].found([Part { first, count, state, payload: None, version }]);
                continue;
            }
            self.fetches[fetch].more(1);
            let (chain, under) = self.chain();
            let tag = under.insert(Under { since: now, what: Asked::Fetch(fetch) });
            chain.fetch(now, tag, usize::from(nearest), chunk, run, Want::Data);
        }
        self.segment_done(fetch);
    }

    fn parents(&self) -> &Parents {
        self.parents.as_ref().expect("only a clone asks its parents")
    }

    /// The places of data in what is being read, for the reads that follow.
    fn learn_sections(&mut self, chunk: u32, range: BlockRange) {
        let now = self.now;
        for section in range.first / BLOCKS..=(range.end() - 1) / BLOCKS {
            let at = At { chunk, section };
            let p = self.parents.as_mut().expect("a clone");
            let (own, depth) = p.presence.wanted(at, now);
            if own {
                self.ask_presence(at);
            }
            if depth {
                self.parents.as_mut().expect("a clone").presence.depth_asked(at);
                self.ask_depths(Depths::new(at), at.range());
            }
        }
    }

    fn ask_presence(&mut self, at: At) {
        let Some(slot) = self.readable(at.chunk, 0) else { return };
        let drive = self.chunks[at.chunk as usize].slots[slot].drive;
        let sent =
            self.window.iter().filter(|(_, w)| w.live && w.chunk == at.chunk).map(|(_, w)| w.record.range);
        self.parents.as_mut().expect("a clone").presence.own_asked(at, sent);
        let token = self.ask(drive, What::Presence(at));
        self.send_slot(at.chunk, slot, token, Request::Map { view: View::Head, range: at.range() });
    }
    pub(crate) fn presence_answered(&mut self, drive: usize, at: At, runs: &[Run]) {
        let whole = runs.iter().map(|r| u64::from(r.count)).sum::<u64>() == u64::from(BLOCKS);
        if !whole || self.drives[drive].doubt {
            return self.presence_lost(at);
        }
        if let Some(p) = &mut self.parents {
            p.presence.own_answered(at, runs);
        }
    }
    /// The parents may be gone since it was asked.
    pub(crate) fn presence_lost(&mut self, at: At) {
        let now = self.now;
        if let Some(p) = &mut self.parents {
            p.presence.own_lost(at, now);
        }
    }

    fn ask_depths(&mut self, depths: Depths, range: BlockRange) {
        let now = self.now;
        let (at, level) = (depths.at, depths.level);
        assert!(level < DEEPEST);
        let (chain, under) = self.chain();
        let tag = under.insert(Under { since: now, what: Asked::Depths(depths) });
        chain.fetch(now, tag, usize::from(level), at.chunk, range, Want::Here);
    }

    // ------------------------------------------------------------------ block status

    /// Block status of which the branch itself has a part.
    pub(crate) fn map_layers(&mut self, op: usize, own: &[Run]) {
        let (chunk, range) = (self.ops[op].piece.chunk, self.ops[op].piece.range);
        let blocks = own.iter().flat_map(|r| (0..r.count).map(|_| Run { count: 1, ..*r })).collect();
        self.push_layers(Box::new(Layers { op, chunk, range, blocks, level: 0 }));
    }

    fn push_layers(&mut self, layers: Box<Layers>) {
        let now = self.now;
        let deeper = layers.level < self.parents().levels.len();
        let Some(range) = layers.missing().filter(|_| deeper) else {
            return self.map_done(layers.op, layers.runs());
        };
        let (level, chunk) = (layers.level, layers.chunk);
        let (chain, under) = self.chain();
        let tag = under.insert(Under { since: now, what: Asked::Map(layers) });
        chain.fetch(now, tag, level, chunk, range, Want::Here);
    }

    // ------------------------------------------------------------------ what is said of it

    /// Since when a guest's request waits for the parents; or, not a guest's, a job.
    pub(crate) fn parents_waited_for(&self, guest: bool) -> Option<Time> {
        let under = self.parents.as_ref()?.under.iter();
        let is_meant = |u: &Under| match u.what {
            Asked::Fetch(f) => self.fetches[f].is_a_guests() == guest,
            Asked::Map(_) => guest,
            Asked::Depths(_) => false,
        };
        under.filter(|(_, u)| is_meant(u)).map(|(_, u)| u.since).min()
    }
    pub(crate) fn drop_parents(&mut self) {
        if let Some(p) = &mut self.parents {
            (p.chain, p.presence) = (None, Presence::default());
            p.under.clear();
        }
    }
    /// Invariants: whatever is asked is being fetched, and is for somebody.
    pub(crate) fn check_parents(&self) {
        let Some(p) = &self.parents else { return };
        let idle = p.chain.as_ref().is_none_or(Chain::is_idle);
        assert_eq!(p.under.is_empty(), idle, "what is asked of the parents is being fetched");
        for (_, u) in &p.under {
            match &u.what {
                Asked::Fetch(f) => assert!(self.fetches.contains(*f), "a read waits for it"),
                Asked::Map(l) => assert!(self.ops.contains(l.op), "a map waits for it"),
                Asked::Depths(_) => {}
            }
        }
    }
}

/// Parts of a range, of whole extents but for its ends, that are alike.
fn runs_by<T: PartialEq>(range: BlockRange, is: impl Fn(u32) -> T) -> Vec<(BlockRange, T)> {
    let mut runs: Vec<(BlockRange, T)> = vec![];
    let mut first = range.first;
    while first < range.end() {
        let end = ((first / BLOCKS_PER_EXTENT + 1) * BLOCKS_PER_EXTENT).min(range.end());
        let this = is(first);
        match runs.last_mut() {
            Some((r, t)) if *t == this => *r = BlockRange::new(r.first, end - r.first),
            _ => runs.push((BlockRange::new(first, end - first), this)),
        }
        first = end;
    }
    runs
}
