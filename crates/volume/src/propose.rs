//! Changes of membership (section 3). *Undecided* ends only when the chunk's number has changed; until then both
//! sets are obeyed. An error, a timeout or a read of the old number decides nothing.

use crate::event::CloseReason;
use crate::members::{Mask, Undecided, bit};
use crate::session::{Asked, Session};
use proto::control::{ChangeCause, ChunkChange, MetaAnswer, MetaRefusal, MetaRequest};
use proto::{ChunkIndex, Configuration, DriveId, Member, MemberState, Span};

/// Changes in one command.
const BATCH: usize = 4096;
/// How long a question to metad may be unanswered before it is asked again.
const ASK_AGAIN: Span = Span::secs(3);

fn backoff(tries: u32) -> Span {
    Span::millis((50 << tries.min(5)).min(1000))
}

impl Session {
    /// The present configuration of a chunk, as metad has told it: decides whatever was undecided.
    pub(crate) fn take_up(&mut self, chunk: u32, to: &Configuration) {
        let mut c = std::mem::take(&mut self.chunks[chunk as usize]);
        for (i, s) in c.members() {
            self.drives[s.drive].chunks.remove(&chunk);
            self.drives[s.drive].required -= u32::from(c.required & bit(i) != 0);
        }
        let fresh = c.adopt(to, |p| self.drive_index(p.drive, p.node));
        c.required = 0;
        c.undecided = None;
        for (_, s) in c.members() {
            self.drives[s.drive].chunks.insert(chunk);
        }
        let uneven = c.members().any(|(_, s)| s.state != MemberState::InSync);
        self.chunks[chunk as usize] = c;
        self.undecided.remove(&chunk);
        self.to_propose.remove(&chunk);
        if uneven {
            self.degraded.insert(chunk);
        } else {
            self.degraded.remove(&chunk);
        }
        if fresh != 0 {
            for (_, w) in self.window.iter_mut().filter(|(_, w)| w.live && w.chunk == chunk) {
                w.sent &= !fresh;
                w.acked &= !fresh;
                w.fresh &= !fresh;
                w.refused &= !fresh;
            }
            let fetches = &self.fetches;
            for g in self.stuck.iter_mut().filter(|g| fetches[g.fetch].is_of(chunk)) {
                g.tried = 0;
            }
        }
        self.configuration_taken(chunk);
        self.recompute(chunk);
    }

    /// Whom the session requires (section 3), anew.
    pub(crate) fn recompute(&mut self, chunk: u32) {
        let (demanded, sent) = self.target_masks(chunk);
        let c = &mut self.chunks[chunk as usize];
        let old = c.required;
        let (mut required, mut inter) = (c.set, c.set);
        if let Some(u) = &c.undecided {
            required = u.sets.iter().fold(required, |m, s| m | s);
            inter = u.sets.iter().fold(inter, |m, s| m & s);
            if self.bugs.has(|b| b.forget_stale) {
                required = *u.sets.last().unwrap_or(&required);
            }
        }
        (c.required, c.inter) = (required | demanded, inter);
        c.fanout = c.required | sent;
        let now = c.required;
        for (i, s) in self.chunks[chunk as usize].slots.iter().enumerate() {
            let (was, is) = (old & bit(i) != 0, now & bit(i) != 0);
            if was != is {
                let d = &mut self.drives[s.drive];
                d.required = if is { d.required + 1 } else { d.required - 1 };
            }
        }
        self.settle_chunk(chunk);
    }

    /// Proposes that `slot` gets this state, or goes (`None`). One change of a chunk at a time.
    pub(crate) fn propose(
        &mut self,
        chunk: u32,
        slot: usize,
        state: Option<MemberState>,
        cause: ChangeCause,
        only_if_down: Vec<DriveId>,
    ) {
        let c = &self.chunks[chunk as usize];
        assert!(c.undecided.is_none(), "one change of a chunk at a time");
        let mut members = vec![];
        let mut set: Mask = 0;
        for (i, s) in c.members() {
            let state = if i == slot { state } else { Some(s.state) };
            if let Some(state) = state {
                members.push(Member { place: s.place, state });
                set |= if state == MemberState::Stale { 0 } else { bit(i) };
            }
        }
        let change = ChunkChange { chunk: ChunkIndex(chunk), from: c.number, members, cause, only_if_down };
        self.chunks[chunk as usize].undecided = Some(Box::new(Undecided {
            sets: vec![set],
            change,
            about: Some(slot),
            asked: None,
            again: self.now,
            tries: 0,
            withdrawn: false,
        }));
        self.undecided.insert(chunk);
        self.to_propose.insert(chunk);
        self.recompute(chunk);
    }

    /// Sends what is to be proposed; says again what has no answer; withdraws what has lost its reason.
    pub(crate) fn push_proposals(&mut self) {
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, (since, _))| self.now.since(*since) > ASK_AGAIN)
            .map(|(&token, _)| token)
            .collect();
        for token in late {
            self.meta_answer(token, MetaAnswer::Unavailable);
        }
        let mut changes = vec![];
        for chunk in self.to_propose.clone() {
            if changes.len() >= BATCH {
                self.dirty = true;
                break;
            }
            let Some(u) = &self.chunks[chunk as usize].undecided else { continue };
            if u.asked.is_some() || u.again > self.now {
                continue;
            }
            if u.tries > 0 && !u.withdrawn {
                if self.still_wanted(chunk) {
                    self.refresh_evidence(chunk);
                } else {
                    self.withdraw(chunk);
                }
            }
            let u = self.chunks[chunk as usize].undecided.as_ref().expect("just seen");
            changes.push(u.change.clone());
        }
        if changes.is_empty() {
            return;
        }
        let chunks: Vec<u32> = changes.iter().map(|c| c.chunk.0).collect();
        let request = MetaRequest::Propose { branch: self.branch, epoch: self.epoch, changes };
        let token = self.ask_metad(Asked::Proposal(chunks.clone()), request);
        for c in chunks {
            if let Some(u) = &mut self.chunks[c as usize].undecided {
                u.asked = Some(token);
                u.tries += 1;
            }
        }
    }

    /// 3: to withdraw, it proposes the old set again, which raises the number.
    fn withdraw(&mut self, chunk: u32) {
        let c = &mut self.chunks[chunk as usize];
        let members = c.members().map(|(_, s)| Member { place: s.place, state: s.state }).collect();
        let set = c.set;
        let Some(u) = &mut c.undecided else { return };
        u.withdrawn = true;
        u.sets.push(set);
        u.change.members = members;
        u.change.cause = ChangeCause::Withdrawn;
        u.change.only_if_down.clear();
        self.recompute(chunk);
    }

    pub(crate) fn ask_chunks(&mut self) {
        if self.to_ask.is_empty() || self.now < self.ask_after {
            return;
        }
        self.ask_after = self.now + Span::millis(200);
        let take: Vec<u32> = self.to_ask.iter().copied().take(BATCH).collect();
        for c in &take {
            self.to_ask.remove(c);
        }
        let chunks = take.iter().copied().map(ChunkIndex).collect();
        let request = MetaRequest::Chunks { branch: self.branch, epoch: self.epoch, chunks };
        self.ask_metad(Asked::Chunks(take), request);
    }

    pub(crate) fn meta_answer(&mut self, token: u64, answer: MetaAnswer) {
        if token & crate::chain::TOKEN != 0 {
            return self.parents_placed(token, &answer);
        }
        let Some((_, asked)) = self.asked.remove(&token) else { return };
        self.dirty = true;
        let unheard = matches!(answer, MetaAnswer::Unavailable);
        let mut heard_views = false;
        match answer {
            MetaAnswer::Configurations { epoch, chunks, down } => {
                if epoch != self.epoch {
                    return self.give_up(CloseReason::Fenced);
                }
                self.down = down.into_iter().collect();
                for (chunk, c) in chunks {
                    self.learn(chunk, &c);
                }
            }
            MetaAnswer::Created { configurations, placement } => {
                return self.placement_answered(&configurations, placement);
            }
            MetaAnswer::Views { epoch, views } => {
                if epoch != self.epoch {
                    return self.give_up(CloseReason::Fenced);
                }
                heard_views = true;
                self.views_answered(views);
            }
            MetaAnswer::Job { epoch, index, job, geometry, placement } => {
                if epoch != self.epoch {
                    return self.give_up(CloseReason::Fenced);
                }
                self.resized(index, geometry, placement);
                self.job_told(index, job);
            }
            MetaAnswer::Refused(MetaRefusal::OldEpoch { .. }) => return self.give_up(CloseReason::Fenced),
            MetaAnswer::Ok if matches!(asked, Asked::Detach) => return self.detached(),
            _ => {}
        }
        match asked {
            Asked::Proposal(chunks) => self.proposal_answered(&chunks, token),
            Asked::Created => self.creation.ask_again(self.now + backoff(3)),
            Asked::Detach => self.closing.ask_again(self.now + backoff(2)),
            // a change that metad told us of once is told no second time
            Asked::Chunks(chunks) if unheard => self.to_ask.extend(chunks),
            Asked::Chunks(_) => {}
            Asked::Views(sealed) => self.views_heard(sealed, heard_views),
            Asked::Cut => self.cut_answered(heard_views),
            Asked::Shrunk => self.shrunk_answered(),
        }
    }

    fn learn(&mut self, chunk: ChunkIndex, c: &Configuration) {
        match self.chunks.get(chunk.0 as usize) {
            Some(have) if c.number > have.number => self.take_up(chunk.0, c),
            None if chunk.0 as usize == self.chunks.len() => {
                self.chunks.push(crate::members::Chunk::default());
                self.take_up(chunk.0, c);
            }
            _ => {}
        }
    }

    /// What is still undecided is said again later.
    fn proposal_answered(&mut self, chunks: &[u32], token: u64) {
        for &chunk in chunks {
            let now = self.now;
            let Some(u) = &mut self.chunks[chunk as usize].undecided else { continue };
            if u.asked != Some(token) {
                continue;
            }
            u.asked = None;
            u.again = now + backoff(u.tries);
            if self.bugs.has(|b| b.take_error_as_unchanged) {
                self.chunks[chunk as usize].undecided = None;
                self.undecided.remove(&chunk);
                self.to_propose.remove(&chunk);
                self.drop_attempt(chunk);
                self.recompute(chunk);
            }
        }
    }
}
