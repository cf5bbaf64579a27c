//! The judge's rules, one by one.

use oracle::history::Span;
use oracle::{Entry, History, Judge, OpId, OpKind, Outcome, Rule, VolumeNumber};

const V: VolumeNumber = VolumeNumber(1);

#[derive(Default)]
struct Log(Vec<Entry>, u64);
impl Log {
    fn ask(&mut self, client: u32, kind: OpKind) -> OpId {
        self.1 += 1;
        self.0.push(Entry::Ask { op: OpId(self.1), volume: V, client, kind });
        OpId(self.1)
    }
    fn answer(&mut self, op: OpId, outcome: Outcome) {
        self.0.push(Entry::Answer { op, outcome });
    }
    fn write(&mut self, client: u32, value: u64, fua: bool) {
        let op = self.ask(client, OpKind::Write { span: Span { first: 7, count: 1 }, value, fua });
        self.answer(op, Outcome::Done);
    }
    fn read(&mut self, client: u32, value: u64) {
        let op = self.ask(client, OpKind::Read { span: Span { first: 7, count: 1 } });
        self.answer(op, Outcome::Read(vec![value]));
    }
    fn flush(&mut self) {
        let op = self.ask(1, OpKind::Flush);
        self.answer(op, Outcome::Done);
    }
    fn serves(&mut self, client: u32) {
        self.0.push(Entry::Serves { volume: V, client });
    }
    fn loss(&mut self) {
        self.0.push(Entry::LossPermitted { volume: V, span: Span { first: 0, count: 100 } });
    }
    fn broke(self) -> Option<Rule> {
        Judge::whole(&History(self.0)).err().map(|v| v.rule)
    }
}
fn log() -> Log {
    let mut l = Log::default();
    l.serves(1);
    l
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let mut l = log();
    l.write(1, 5, false);
    l.serves(2);
    l.read(2, 0);
    assert_eq!(l.broke(), Some(Rule::Linearizable));
}

#[test]
fn an_unanswered_write_may_show_or_not_but_not_come_late() {
    for (first, second, bad) in [(5, 5, false), (0, 0, false), (5, 0, true), (0, 5, true)] {
        let mut l = log();
        l.ask(1, OpKind::Write { span: Span { first: 7, count: 1 }, value: 5, fua: false });
        l.serves(2);
        l.read(2, first);
        l.read(2, second);
        assert_eq!(l.broke().is_some(), bad, "{first} {second}");
    }
}

#[test]
fn a_write_sent_after_a_newer_client_was_served_never_counts() {
    let mut l = log();
    l.serves(2);
    let op = l.ask(1, OpKind::Write { span: Span { first: 7, count: 1 }, value: 5, fua: false });
    l.read(2, 5);
    l.answer(op, Outcome::Gone);
    assert_eq!(l.broke(), Some(Rule::Linearizable));
}

#[test]
fn power_loss_takes_what_was_not_flushed_and_no_more() {
    for (found, bad) in [(1, true), (2, false), (3, false), (4, false), (9, true)] {
        let mut l = log();
        l.write(1, 1, false);
        l.write(1, 2, false);
        l.flush();
        l.write(1, 3, false);
        l.write(1, 4, false);
        l.loss();
        l.serves(2);
        l.read(2, found);
        assert_eq!(l.broke().is_some(), bad, "{found}");
    }
}

#[test]
fn what_was_lost_stays_lost() {
    let mut l = log();
    l.write(1, 1, false);
    l.write(1, 2, false);
    l.loss();
    l.serves(2);
    l.read(2, 1);
    l.read(2, 2);
    assert_eq!(l.broke(), Some(Rule::Flush));
}

#[test]
fn a_forced_write_survives_power_loss() {
    for (found, bad) in [(0, true), (1, true), (2, false), (3, false)] {
        let mut l = log();
        l.write(1, 1, false);
        l.write(1, 2, true);
        l.write(1, 3, false);
        l.loss();
        l.serves(2);
        l.read(2, found);
        assert_eq!(l.broke().is_some(), bad, "{found}");
    }
}

#[test]
fn a_second_power_loss_before_anybody_reads_widens_nothing() {
    for (found, bad) in [(1, true), (2, false), (3, false)] {
        let mut l = log();
        l.write(1, 1, false);
        l.write(1, 2, false);
        l.flush();
        l.write(1, 3, false);
        l.loss();
        l.serves(2);
        l.loss();
        l.serves(3);
        l.read(3, found);
        assert_eq!(l.broke().is_some(), bad, "{found}");
    }
}

#[test]
fn an_error_needs_an_excuse() {
    for excused in [false, true] {
        let mut l = log();
        let op = l.ask(1, OpKind::Read { span: Span { first: 7, count: 1 } });
        if excused {
            l.0.push(Entry::ErrorsPermitted { volume: V, permitted: true });
        }
        l.answer(op, Outcome::Failed);
        assert_eq!(l.broke(), (!excused).then_some(Rule::Error));
    }
}

#[test]
fn torn_blocks_are_found() {
    let mut l = log();
    let op = l.ask(1, OpKind::Read { span: Span { first: 7, count: 1 } });
    l.answer(op, Outcome::Torn(7));
    assert_eq!(l.broke(), Some(Rule::Torn));
}

#[test]
fn block_status_says_what_a_read_would() {
    for (says, bad) in [(vec![(7, 5)], false), (vec![(7, 0)], true), (vec![], false), (vec![(6, 0)], false)] {
        let mut l = log();
        l.write(1, 5, false);
        let op = l.ask(1, OpKind::Read { span: Span { first: 6, count: 2 } });
        l.answer(op, Outcome::Partly(says.clone()));
        assert_eq!(l.broke().is_some(), bad, "{says:?}");
    }
}

/// A clone whose register 7 begins with this, as far as it is known.
fn clone(value: Option<u64>) -> Log {
    let mut l = Log::default();
    l.begins(value);
    l.serves(1);
    l
}
impl Log {
    fn begins(&mut self, value: Option<u64>) {
        self.0.push(Entry::Begins { volume: V, values: vec![(7, value)] });
    }
}

#[test]
fn a_clone_reads_what_its_parents_view_holds() {
    for (holds, found, bad) in [(5, 5, false), (5, 0, true), (5, 6, true), (0, 0, false), (0, 5, true)] {
        let mut l = clone(Some(holds));
        l.read(1, found);
        l.write(1, 9, false);
        l.read(1, 9);
        assert_eq!(l.broke().is_some(), bad, "{holds} {found}");
    }
    let mut l = clone(Some(5));
    l.write(1, 9, false);
    l.read(1, 5);
    assert_eq!(l.broke(), Some(Rule::Linearizable));
}

#[test]
fn what_the_view_holds_is_pinned_by_the_first_read() {
    for (first, second, bad) in [(5, 5, false), (0, 0, false), (5, 0, true), (0, 5, true), (5, 6, true)] {
        let mut l = clone(None);
        l.read(1, first);
        l.read(1, second);
        assert_eq!(l.broke().is_some(), bad, "{first} {second}");
    }
}

#[test]
fn what_was_pinned_must_be_what_the_view_turns_out_to_hold() {
    for (found, holds, bad) in [(5, 5, false), (0, 0, false), (5, 0, true), (0, 5, true), (5, 6, true)] {
        for late in [false, true] {
            let mut l = clone(None);
            let (first, second) = if late { (true, false) } else { (false, true) };
            if first {
                l.read(1, found);
            }
            l.begins(Some(holds));
            if second {
                l.read(1, found);
            }
            l.write(1, 9, false);
            l.begins(Some(holds));
            l.read(1, 9);
            assert_eq!(l.broke().is_some(), bad, "{found} {holds} {late}");
        }
    }
}

#[test]
fn a_clones_beginning_survives_power_loss_until_something_newer_is_flushed() {
    for holds in [Some(5), None] {
        for (flushed, found, bad) in [(false, 5, false), (false, 9, false), (true, 5, true), (true, 9, false)]
        {
            let mut l = clone(holds);
            l.write(1, 9, flushed);
            l.loss();
            l.serves(2);
            l.read(2, found);
            assert_eq!(l.broke().is_some(), bad, "{holds:?} {flushed} {found}");
        }
    }
}
