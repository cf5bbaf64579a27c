//! A snapshot that is read without a session, on any node (6): guests' reads of `volume@snapshot`.
//!
//! Owns the guest's requests; `chain` gets the blocks. Nothing is written, ever. When every replica says that it does
//! not keep the view, metad is asked whether the snapshot is still there: only then a read ends in an error, and it
//! never ends in zeroes.

use crate::chain::{Chain, Out, TOKEN, Want};
use crate::geometry::{Piece, PieceKind, Splitter};
use crate::reads::{Part, pieces};
use crate::request::{GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest, SnapshotFound};
use proto::message::{ReplyFrame, RequestFrame, Run};
use proto::{Generation, Geometry, NodeId, Span, Ticket, Time};
use slab::Slab;
use std::collections::VecDeque;

/// Pieces of one request under way.
const PIECES: u32 = 16;
/// Between two questions whether the snapshot is still there.
const ASK_AGAIN: Span = Span::millis(200);

#[derive(Clone, Debug)]
pub enum ReaderEvent {
    Guest(GuestRequest),
    /// The node can be asked (our own always can).
    Connected {
        node: NodeId,
    },
    /// ... no more: what it was asked it will not answer.
    Disconnected {
        node: NodeId,
    },
    Reply {
        frame: ReplyFrame,
    },
    Meta {
        token: u64,
        answer: MetaAnswer,
    },
    Wake,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "almost all are frames; a box would be an allocation per read")]
pub enum ReaderEffect {
    Send {
        node: NodeId,
        frame: RequestFrame,
    },
    Complete {
        ticket: Ticket,
        result: Result<GuestReply, GuestError>,
    },
    Meta {
        token: u64,
        request: MetaRequest,
    },
    /// The snapshot is deleted: what is still asked ends in errors.
    Gone,
}

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    splitter: Splitter,
    /// By piece.
    answer: Answer,
    left: u32,
    error: Option<GuestError>,
}

#[derive(Debug)]
enum Answer {
    Read(Vec<Vec<ReadPiece>>),
    Map(Vec<Vec<Run>>),
}

#[derive(Debug)]
struct Under {
    request: usize,
    place: usize,
    piece: Piece,
}

#[derive(Debug)]
pub struct Reader {
    volume: String,
    snapshot: String,
    found: SnapshotFound,
    chain: Chain,
    requests: Slab<Asked>,
    under: Slab<Under>,
    effects: VecDeque<ReaderEffect>,
    /// Whether the snapshot is still there: the question under way.
    asked: Option<u64>,
    doubted: bool,
    /// A read ended because the snapshot is gone; and that was said.
    gone: bool,
    said: bool,
    ask_after: Time,
    next_token: u64,
}

impl Reader {
    /// A reader of what metad has found under these names.
    #[must_use]
    pub fn new(volume: String, snapshot: String, found: SnapshotFound, me: NodeId, now: Time) -> Reader {
        let chain = Chain::new(me, found.geometry.chunk_shift, &found.levels, now);
        let mut r = Reader {
            volume,
            snapshot,
            found,
            chain,
            requests: Slab::new(),
            under: Slab::new(),
            effects: VecDeque::new(),
            asked: None,
            doubted: false,
            gone: false,
            said: false,
            ask_after: now,
            next_token: 0,
        };
        r.drain(now);
        r
    }
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.found.geometry
    }
    /// The branch of the snapshot itself.
    #[must_use]
    pub fn branch(&self) -> proto::BranchId {
        self.found.levels.first().map_or(proto::BranchId(0), |l| l.branch)
    }
    fn generation(&self) -> Generation {
        self.found.levels.first().map_or(Generation(0), |l| l.generation)
    }
    pub fn poll(&mut self) -> Option<ReaderEffect> {
        self.effects.pop_front()
    }
    #[must_use]
    pub fn next_wake(&self) -> Time {
        let asks = if self.doubted && self.asked.is_none() { self.ask_after } else { Time::FAR };
        self.chain.next_wake().min(asks)
    }

    /// One event. Effects are to be drained by `poll` afterwards.
    pub fn handle(&mut self, now: Time, event: ReaderEvent) {
        match event {
            ReaderEvent::Guest(g) => self.guest(now, g),
            ReaderEvent::Connected { node } => self.chain.connected(now, node),
            ReaderEvent::Disconnected { node } => self.chain.disconnected(now, node),
            ReaderEvent::Reply { frame } => self.chain.reply(now, frame.token, frame.reply),
            ReaderEvent::Meta { token, answer } => {
                if !self.chain.meta(now, token, &answer) && self.asked == Some(token) {
                    self.asked = None;
                    self.ask_after = now + ASK_AGAIN;
                    self.told(now, answer);
                }
            }
            ReaderEvent::Wake => self.chain.push(now),
        }
        self.drain(now);
        #[cfg(debug_assertions)]
        self.check();
    }

    /// Whether the snapshot is still there. Under another name it may be: its replicas then do not refuse it.
    fn told(&mut self, now: Time, answer: MetaAnswer) {
        match answer {
            MetaAnswer::Snapshot(is) => {
                self.doubted = false;
                self.chain.known(now, is.levels != self.found.levels);
            }
            MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot | MetaRefusal::NoSuchVolume) => {
                self.doubted = false;
                self.chain.known(now, true);
            }
            // metad decides nothing by silence
            _ => {}
        }
    }

    fn drain(&mut self, now: Time) {
        while let Some(out) = self.chain.poll() {
            match out {
                Out::Send { node, frame } => self.effects.push_back(ReaderEffect::Send { node, frame }),
                Out::Meta { token, request } => self.effects.push_back(ReaderEffect::Meta { token, request }),
                Out::Done { tag, parts } => self.fetched(now, tag, parts),
                Out::Doubted => self.doubted = true,
            }
        }
        if self.gone && !std::mem::replace(&mut self.said, true) {
            self.effects.push_back(ReaderEffect::Gone);
        }
        if self.doubted && self.asked.is_none() && now >= self.ask_after {
            self.next_token += 1;
            assert!(self.next_token < TOKEN, "fewer than 2^47 questions");
            self.asked = Some(self.next_token);
            let request =
                MetaRequest::Snapshot { volume: self.volume.clone(), snapshot: self.snapshot.clone() };
            self.effects.push_back(ReaderEffect::Meta { token: self.next_token, request });
        }
    }

    // ------------------------------------------------------------------ requests

    fn guest(&mut self, now: Time, g: GuestRequest) {
        let ticket = g.ticket;
        let (kind, offset, len, answer) = match g.op {
            GuestOp::Flush => return self.complete(ticket, Ok(GuestReply::Done)),
            GuestOp::Read { offset, len } => (PieceKind::Read, offset, u64::from(len), Answer::Read(vec![])),
            GuestOp::Map { offset, len } => (PieceKind::Map, offset, len, Answer::Map(vec![])),
            // Of an older generation, or it cannot be told.
            GuestOp::Changes { offset, len, since } if since < self.generation() => {
                (PieceKind::Changes(since), offset, len, Answer::Map(vec![]))
            }
            GuestOp::Write { .. } | GuestOp::Discard { .. } | GuestOp::WriteZeroes { .. } => {
                return self.complete(ticket, Err(GuestError::ReadOnly));
            }
            GuestOp::Changes { .. } | GuestOp::Verify { .. } => {
                return self.complete(ticket, Err(GuestError::Invalid));
            }
        };
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > self.found.geometry.size) {
            return self.complete(ticket, Err(GuestError::Invalid));
        }
        let splitter = Splitter::new(kind, offset, len);
        let r = self.requests.insert(Asked { ticket, splitter, answer, left: 0, error: None });
        self.split(now, r);
    }

    fn complete(&mut self, ticket: Ticket, result: Result<GuestReply, GuestError>) {
        self.effects.push_back(ReaderEffect::Complete { ticket, result });
    }

    /// Begins as many pieces of a request as may be under way.
    fn split(&mut self, now: Time, r: usize) {
        let geometry = self.found.geometry;
        while self.requests[r].left < PIECES && self.requests[r].error.is_none() {
            let q = &mut self.requests[r];
            let Some(piece) = q.splitter.next(geometry) else { return };
            q.left += 1;
            let (place, want) = match &mut q.answer {
                Answer::Read(v) => {
                    v.push(vec![]);
                    (v.len() - 1, Want::Data)
                }
                Answer::Map(v) => {
                    v.push(vec![]);
                    let want = match piece.kind {
                        PieceKind::Changes(since) => Want::Changes(since),
                        _ => Want::States,
                    };
                    (v.len() - 1, want)
                }
            };
            let tag = self.under.insert(Under { request: r, place, piece });
            self.chain.fetch(now, tag, 0, piece.chunk, piece.range, want);
        }
    }

    fn fetched(&mut self, now: Time, tag: usize, parts: Option<Vec<Part>>) {
        let Under { request, place, piece } = self.under.remove(tag);
        // Changes end for another reason, too: the generation they were asked of is gone.
        self.gone |= parts.is_none() && !matches!(piece.kind, PieceKind::Changes(_));
        let q = &mut self.requests[request];
        q.left -= 1;
        match (parts, &mut q.answer) {
            (Some(parts), Answer::Read(v)) if !parts.iter().any(Part::is_bad) => {
                v[place] = pieces(parts, piece.head(), piece.len);
            }
            (Some(parts), Answer::Map(v)) => v[place] = parts.iter().map(run).collect(),
            _ => q.error = Some(GuestError::Io),
        }
        self.split(now, request);
        if self.requests[request].left > 0 {
            return;
        }
        let q = self.requests.remove(request);
        let result = match (q.error, q.answer) {
            (Some(e), _) => Err(e),
            (None, Answer::Read(v)) => Ok(GuestReply::Read(v.into_iter().flatten().collect())),
            (None, Answer::Map(v)) => Ok(GuestReply::Map(v.into_iter().flatten().collect())),
        };
        self.complete(q.ticket, result);
    }

    /// Invariants: every request has a piece under way, and every piece is fetched.
    pub fn check(&self) {
        assert!(self.requests.iter().all(|(_, q)| q.left > 0), "an answered request is completed");
        assert_eq!(self.under.is_empty(), self.chain.is_idle(), "what is under way is being fetched");
    }
}

fn run(p: &Part) -> Run {
    Run { count: p.count, state: p.state, version: p.version, generation: Generation(0) }
}
