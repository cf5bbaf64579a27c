//! What was tried and what was checked. A run in which one of these is zero has shown nothing about it, and fails.

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),*];
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}

counted! {
    /// A fault that was done (not only drawn).
    Fault {
        ProcessCrash = "crash of a process",
        CrashBetweenEffects = "crash between two effects",
        PowerLoss = "power loss of a machine",
        PowerLossAll = "power loss of all",
        Stop = "process stopped and continued",
        StopBetweenEffects = "stopped between two effects",
        LinkBreak = "connection broken",
        LinkHalfBreak = "connection broken, one end late to hear",
        LateBytes = "bytes of an old connection late",
        DataOneWay = "data partition, one way",
        DataTwoWay = "data partition, two ways",
        ControlOneWay = "control partition, answers lost",
        ControlTwoWay = "control partition, both ways",
        Leaderless = "metad without a leader",
        MetadSlow = "metad slow",
        AnswerLost = "metad's answer lost",
        CommandDoubled = "command applied twice",
        CommandLate = "command applied late",
        DiskSlow = "disk slow",
        DiskError = "disk I/O error",
        NetSlow = "network slow",
        Torn = "write torn by power loss",
        SectorsLost = "unflushed sectors lost",
        ClockDrift = "clocks drift",
        ForcedAttach = "attach by force",
        CleanMove = "clean move to another node",
        Takeover = "taken over while cut off or stopped",
        KeepListLate = "keep-list late",
        KeepListLost = "keep-list lost",
        KeepListDoubled = "keep-list told twice",
    }
}

counted! {
    /// A property of section 11 (and the invariant, and promise 2).
    Property {
        Lin = "LIN",
        Flush = "FLUSH",
        AckSet = "ACKSET",
        Same = "SAME",
        One = "ONE",
        Wal = "WAL",
        Aba = "ABA",
        Live = "LIVE",
        Invariant = "INVARIANT",
        Min = "MIN",
        Evidence = "EVIDENCE",
        Cut = "CUT",
        Views = "VIEWS",
        Readers = "VIEWS, read by clients",
        Status = "VIEWS, block status and changes",
        Kept = "KEPT",
        Tie = "TIE",
        Clones = "LIN, registers of clones",
    }
}

counted! {
    /// What the guests did.
    Guest {
        Read = "reads",
        Write = "writes",
        SubBlock = "sub-block writes",
        Fua = "forced writes",
        Discard = "discards",
        Zeroes = "write zeroes",
        Flush = "flushes",
        Map = "block status",
        Unanswered = "unanswered",
    }
}

counted! {
    /// What the operator asked for.
    Operator {
        Snapshot = "snapshots",
        Group = "snapshots of a group",
        Delete = "deletions of snapshots",
        Read = "snapshots read",
        Clone = "clones made",
        LargerClone = "clones made larger than their source",
        Deep = "clones and rollbacks over more than one level",
        Rollback = "rollbacks",
        VolumeDelete = "volumes erased",
        Trash = "volumes put into the trash",
        Restore = "volumes restored from the trash",
        Flatten = "flattens of clones",
        Untied = "ties cut",
    }
}

/// Counts of one seed, or of a whole run.
#[derive(Clone, Debug)]
pub struct Counts {
    faults: Vec<u64>,
    properties: Vec<u64>,
    guests: Vec<u64>,
    operator: Vec<u64>,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            faults: vec![0; Fault::ALL.len()],
            properties: vec![0; Property::ALL.len()],
            guests: vec![0; Guest::ALL.len()],
            operator: vec![0; Operator::ALL.len()],
        }
    }
}

impl Counts {
    pub fn fault(&mut self, f: Fault) {
        self.faults[f as usize] += 1;
    }
    pub fn checked(&mut self, p: Property, n: u64) {
        self.properties[p as usize] += n;
    }
    pub fn guest(&mut self, g: Guest) {
        self.guests[g as usize] += 1;
    }
    pub fn operator(&mut self, o: Operator) {
        self.operator[o as usize] += 1;
    }
    #[must_use]
    pub fn faults_done(&self) -> u64 {
        self.faults.iter().sum()
    }
    #[must_use]
    pub fn of(&self, p: Property) -> u64 {
        self.properties[p as usize]
    }
    /// Operations of guests that were asked.
    #[must_use]
    pub fn operations(&self) -> u64 {
        [Guest::Read, Guest::Write, Guest::SubBlock, Guest::Discard, Guest::Zeroes, Guest::Flush]
            .iter()
            .map(|g| self.guests[*g as usize])
            .sum()
    }
    pub fn add(&mut self, o: &Counts) {
        let pairs = [
            (&mut self.faults, &o.faults),
            (&mut self.properties, &o.properties),
            (&mut self.guests, &o.guests),
            (&mut self.operator, &o.operator),
        ];
        for (mine, theirs) in pairs {
            for (m, t) in mine.iter_mut().zip(theirs) {
                *m += t;
            }
        }
    }
    /// Everything that was never done or checked.
    #[must_use]
    pub fn zeroes(&self) -> Vec<&'static str> {
        let f = Fault::ALL.iter().filter(|f| self.faults[**f as usize] == 0).map(|f| f.name());
        let p = Property::ALL.iter().filter(|p| self.properties[**p as usize] == 0).map(|p| p.name());
        let g = Guest::ALL.iter().filter(|g| self.guests[**g as usize] == 0).map(|g| g.name());
        let o = Operator::ALL.iter().filter(|o| self.operator[**o as usize] == 0).map(|o| o.name());
        f.chain(p).chain(g).chain(o).collect()
    }
    pub fn lines(&self) -> Vec<String> {
        let mut out = vec![];
        let mut part = |title: &str, rows: Vec<(&str, u64)>| {
            out.push(format!("{title}:"));
            out.extend(rows.iter().map(|(name, n)| format!("  {n:>12}  {name}")));
        };
        part("faults", Fault::ALL.iter().map(|f| (f.name(), self.faults[*f as usize])).collect());
        part("checks", Property::ALL.iter().map(|p| (p.name(), self.properties[*p as usize])).collect());
        part("guests", Guest::ALL.iter().map(|g| (g.name(), self.guests[*g as usize])).collect());
        part("operator", Operator::ALL.iter().map(|o| (o.name(), self.operator[*o as usize])).collect());
        out
    }
}
