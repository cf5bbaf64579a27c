//! The replica's side of the node: handshakes, requests to our stores, fences and leases.
//!
//! A fence goes on to its store only when the leases allow it (`lease::granter`); everything else at once. A
//! request that is about the node itself is answered here.

use crate::event::{LinkId, Notice};
use crate::lease::granter::{Asking, NotCovered};
use crate::link::{Phase, Role};
use crate::node::{Endpoint, Job, Node, PULLS};
use crate::pull::Out;
use crate::seats::Seat;
use proto::deframer::Message;
use proto::handshake::Agreed;
use proto::message::{Hello, Reply, ReplyFrame, Request, RequestFrame, Scope};
use proto::{BranchId, NodeId, Refusal, Time, Version};
use store::Source;

/// A fence that waits for older leases.
pub(crate) struct HeldFence {
    pub source: Source,
    pub asking: Asking,
    pub frame: RequestFrame,
    /// As far as is known: a lease that is returned clears it sooner.
    pub clear_at: Time,
}

impl Node {
    pub(crate) fn message(&mut self, now: Time, id: LinkId, message: Message) {
        let Some(link) = self.links.get(id) else { return };
        self.stirred |= !link.is_up();
        let (role, up) = (link.role, link.is_up());
        let (peer, source) = (link.peer(), link.source);
        match (message, role) {
            (Message::Hello(hello), Role::Acceptor) if link.phase == Phase::Greeting => {
                self.hello(now, id, &hello);
            }
            (Message::Hello(hello), Role::Dialler { to, connection }) if link.phase == Phase::Greeting => {
                match self.identity().conclude(to, connection, &hello) {
                    Ok(agreed) => self.link_up(now, id, agreed),
                    Err(refusal) => self.handshake_refused(now, id, Some(to), refusal, false),
                }
            }
            (Message::Refuse(refusal), _) => self.handshake_refused(now, id, peer, refusal, false),
            (Message::Request(frame), Role::Acceptor) if up => {
                let (source, peer) = (source.expect("up"), peer.expect("up"));
                self.serve(now, source, peer, frame);
            }
            (Message::Reply(frame), Role::Dialler { to, .. }) if up => self.reply(now, to, frame),
            // A peer that talks out of turn is not understood.
            _ => self.handshake_refused(now, id, peer, Refusal::Invalid, true),
        }
    }
    fn identity(&self) -> proto::handshake::Identity {
        let p = &self.params;
        proto::handshake::Identity { cluster: p.cluster, node: p.node, process: p.process }
    }
    fn hello(&mut self, now: Time, id: LinkId, hello: &Hello) {
        let accepted = match self.identity().accept(hello) {
            Ok(_) if self.stopping.is_some() => Err(Refusal::Closing),
            Ok(agreed) => self.links.greeted(now, id, agreed),
            Err(refusal) => Err(refusal),
        };
        match accepted {
            Ok(()) => self.greet(now),
            Err(refusal) => self.handshake_refused(now, id, Some(hello.from), refusal, true),
        }
    }
    fn handshake_refused(
        &mut self,
        now: Time,
        id: LinkId,
        node: Option<NodeId>,
        refusal: Refusal,
        say: bool,
    ) {
        self.notice(Notice::HandshakeRefused { node, refusal });
        let lost = match say {
            true => self.links.refuse(now, id, refusal, &mut self.out),
            false => self.links.close(now, id, &mut self.out),
        };
        self.lost(lost);
    }
    /// Answers the handshakes that waited for our drives.
    pub(crate) fn greet(&mut self, now: Time) {
        if !self.drives_settled() && now < self.greet_by {
            return;
        }
        for id in self.links.settling() {
            if !self.links.is_newest(id) {
                self.handshake_refused(now, id, None, Refusal::OldConnection, true);
                continue;
            }
            // The older connection ends first: what it admitted is dropped before the newer one says a word.
            if let Some(older) = self.links.replaced_by(id) {
                let lost = self.links.close(now, older, &mut self.out);
                self.lost(lost);
            }
            let peer =
                self.links.get(id).and_then(|l| l.peer()).expect("a link that settles has said who it is");
            let source = self.source(Endpoint::Link(id, peer));
            let drives = self.hellos();
            let agreed = self.links.admit(now, id, source, drives, &mut self.out);
            self.granter.connected(peer, agreed.process);
        }
    }
    fn link_up(&mut self, now: Time, id: LinkId, agreed: Agreed) {
        let node = agreed.peer;
        self.links.concluded(now, id, agreed.clone());
        self.holder.connected(node, now);
        self.notice(Notice::LinkUp { node });
        self.tell_readers(&volume::ReaderEvent::Connected { node });
        self.tell_all(&connected(agreed));
    }

    /// A request of a session: of `node`, over the connection (or seat) `source`.
    pub(crate) fn serve(&mut self, now: Time, source: Source, node: NodeId, frame: RequestFrame) {
        self.stirred |=
            !matches!(frame.request, Request::Write { .. } | Request::Read { .. } | Request::Flush);
        match &frame.request {
            Request::Lease { shown } => {
                let NotCovered { refused, unknown } = self.granter.lease(now, node, shown);
                self.answer(now, source, frame.token, Scope::default(), Reply::Leased { refused, unknown });
            }
            Request::LeaseReturn { branches } => {
                self.granter.returned(node, branches);
                self.clear_fences(now);
            }
            Request::Ping => self.answer(now, source, frame.token, Scope::default(), Reply::Done),
            Request::Fence { holder, .. } => match *holder == node {
                true => self.fence(now, source, node, frame),
                false => self.refuse(now, source, &frame, Refusal::Invalid),
            },
            Request::AttemptBegin { attempt } if attempt.target_process != self.params.process => {
                self.refuse(now, source, &frame, Refusal::OldAttempt);
            }
            Request::AttemptBegin { attempt } => {
                self.pulls.begun(source, frame.scope.branch, attempt.clone());
                self.pass_on(now, source, frame);
            }
            Request::AttemptList { number } => {
                self.pulls.list(source, frame.scope.branch, frame.scope.drive, *number, frame.token);
            }
            Request::AttemptEnd { number } => {
                self.pulls.ended(source, frame.scope.branch, *number);
                self.pass_on(now, source, frame);
            }
            Request::Read { source_process: Some(p), .. }
            | Request::Manifest { source_process: Some(p), .. }
            | Request::Digest { source_process: Some(p), .. }
                if *p != self.params.process =>
            {
                self.refuse(now, source, &frame, Refusal::OldAttempt);
            }
            Request::Write { .. } => {
                self.pulls.guest_write(now);
                self.pass_on(now, source, frame);
            }
            _ => self.pass_on(now, source, frame),
        }
    }
    fn pass_on(&mut self, now: Time, source: Source, frame: RequestFrame) {
        let Some(&ix) = self.by_drive.get(&frame.scope.drive) else {
            return self.refuse(now, source, &frame, Refusal::NoDrive);
        };
        if let Some(refusal) = self.drives[ix].refuses() {
            return self.refuse(now, source, &frame, refusal);
        }
        // Both store the epoch: their session may count on our lease from then on (a fence has said so before).
        if matches!(frame.request, Request::AttemptBegin { .. } | Request::Create { .. }) {
            self.granter.recorded(frame.scope.branch, frame.scope.epoch);
        }
        self.drives[ix].sources.insert(source);
        self.jobs.push_back(Job::Store(ix, store::Event::Request { source, frame }));
    }
    fn refuse(&mut self, now: Time, source: Source, frame: &RequestFrame, refusal: Refusal) {
        let version = match &frame.request {
            Request::Write { record, .. } => record.version,
            _ => Version::ZERO,
        };
        self.answer(now, source, frame.token, frame.scope, Reply::Refused { refusal, version });
    }
    fn answer(&mut self, now: Time, source: Source, token: u64, scope: Scope, reply: Reply) {
        self.deliver(now, source, ReplyFrame { token, branch: scope.branch, drive: scope.drive, reply });
    }
    /// A reply goes to the connection that was asked on, or nowhere.
    pub(crate) fn deliver(&mut self, now: Time, source: Source, frame: ReplyFrame) {
        match self.endpoints.get(&source) {
            Some(Endpoint::Link(link, _)) => self.links.reply(now, *link, frame),
            Some(Endpoint::Seat(id, instance))
                if self.seats.all.get(id).and_then(Seat::instance) == Some(*instance) =>
            {
                self.reply(now, self.me(), frame);
            }
            Some(Endpoint::Pulls) => self.pulls.reply(now, frame.token, frame.reply),
            Some(Endpoint::Seat(..)) | None => {}
        }
    }

    /// 5.4, first steps: revoke the older lease, wait it out; then the store may have the fence.
    fn fence(&mut self, now: Time, source: Source, holder: NodeId, frame: RequestFrame) {
        let (branch, epoch) = (frame.scope.branch, frame.scope.epoch);
        let Some(&drive) = self.by_drive.get(&frame.scope.drive) else {
            return self.refuse(now, source, &frame, Refusal::NoDrive);
        };
        if let Some(refusal) = self.drives[drive].refuses() {
            return self.refuse(now, source, &frame, refusal);
        }
        if epoch < self.granter.known(branch) {
            return self.refuse(now, source, &frame, Refusal::OldEpoch);
        }
        let on_record = self.drives[drive].on_record(branch);
        let asking = Asking { branch, epoch, holder, on_record };
        for node in self.granter.asks(now, asking) {
            if let Some(link) = self.links.accepted_of(node) {
                let reply = Reply::Revoke { branches: vec![(branch, epoch)] };
                let frame = ReplyFrame { token: 0, branch, drive: proto::DriveId(0), reply };
                self.links.reply(now, link, frame);
            }
        }
        // A session of our own that holds an older epoch is over before the store hears of the new one.
        self.revoke(self.me(), branch, epoch);
        let clear_at = self.granter.clear_at(now, asking);
        self.fences.push(HeldFence { source, asking, frame, clear_at });
        self.clear_fences(now);
    }
    /// Hands on the fences whose way is clear, in the order in which they came.
    pub(crate) fn clear_fences(&mut self, now: Time) {
        if self.fences.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        for mut held in std::mem::take(&mut self.fences) {
            held.clear_at = self.granter.clear_at(now, held.asking);
            if held.clear_at > now {
                waiting.push(held);
            } else {
                self.pass_on(now, held.source, held.frame);
            }
        }
        self.fences = waiting;
    }

    /// What a resync of ours wants.
    pub(crate) fn pull_out(&mut self, now: Time, out: Out) {
        match out {
            Out::Source { node, frame } if node == self.me() => self.serve(now, PULLS, node, frame),
            Out::Source { node, frame } => {
                if !self.links.request(now, node, &frame) {
                    self.pulls.source_lost(node);
                }
            }
            Out::Own(frame) => self.serve(now, PULLS, self.me(), frame),
            Out::Pull { drive, pull } => match self.open_drive(drive) {
                Some(ix) => self.jobs.push_back(Job::Store(ix, store::Event::Pull(*pull))),
                None => self.pulls.pulled(now, pull.token, Err(Refusal::NoDrive)),
            },
            Out::Reply { source, frame } => self.deliver(now, source, frame),
        }
    }

    // ------------------------------------------------------------------ leases that our sessions hold

    pub(crate) fn ask_leases(&mut self, now: Time) {
        for node in self.holder.due(now) {
            let token = self.desk.own_token();
            let shown = self.holder.ask(now, node, token);
            self.request(now, node, token, Request::Lease { shown });
        }
    }
    pub(crate) fn leased(&mut self, now: Time, node: NodeId, token: u64, not: &NotCovered) {
        let answered = self.holder.leased(now, node, token, not);
        for (branch, epoch) in answered.gained {
            if let Some((id, live)) = self.seats.of_branch(branch)
                && live.epoch == epoch
            {
                self.tell(id, volume::Event::LeaseGained { node });
            }
        }
        // A newer epoch is known there; which one, the next that refuses will say.
        for (branch, epoch) in answered.refused {
            self.revoke(node, branch, epoch.next().unwrap_or(epoch));
        }
    }
    pub(crate) fn revoked(&mut self, node: NodeId, branches: Vec<(BranchId, proto::Epoch)>) {
        for &(branch, newer) in &branches {
            self.holder.revoked(node, branch, newer);
            self.revoke(node, branch, newer);
        }
        // Behind the sessions' events in the queue: by then nothing here counts on the lease.
        let returned = branches.into_iter().map(|(b, _)| b).collect();
        self.jobs.push_back(Job::ReturnLease(node, returned));
    }
    pub(crate) fn return_lease(&mut self, now: Time, node: NodeId, branches: Vec<BranchId>) {
        self.request(now, node, 0, Request::LeaseReturn { branches });
    }
    /// Nothing here counts on leases of the branch any more.
    pub(crate) fn forget_leases(&mut self, now: Time, branch: BranchId) {
        for node in self.holder.forget(branch) {
            self.return_lease(now, node, vec![branch]);
        }
    }
}

pub(crate) fn connected(agreed: Agreed) -> volume::Event {
    let Agreed { peer, connection, process, drives, .. } = agreed;
    volume::Event::Connected { node: peer, connection, process, drives }
}
