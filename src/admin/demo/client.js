// A client of tidegate.v1.json for one user and device: the rules of docs/protocol.md, and no word about how it looks.
//
//   outbox (localStorage) ──SEND──► gateway ──SENT, DELIVER, PAGE──► conversations (memory) ──► listener
//
// A message is in the outbox before it is on the wire, and leaves it with SENT. Whatever happens in between, it is repeated under the
// same cmid, oldest first, so that it counts once. What is received is kept by (conversation, seq); a gap is fetched.

const RETRY = 1, NEWEST = 1, MORE = 1, BELOW_FLOOR = 2, REMOVED = 1, RETRYABLE = 1, CLOSING = 2;
const OWN = 2, QUIET = 4, TRANSIENT = 8, TOMBSTONE = 32;
const CAP_RECEIPTS = 1, CAP_PRESENCE = 2;
const SIGNAL_TYPING = 1;
const PAGE_SIZE = 50, ACK_AFTER_MS = 200, ANSWER_MS = 10000, TRIES_MAX = 5, SILENCE_MS = 25000, WATCH_MAX = 200, FRAMES_KEPT = 200;

export class Client {
  /**
   * @param {{url: string, user: string, device: string, fresh: (again: boolean) => Promise<string>, on: (what: string, detail?: any) => void}} of
   * `fresh` gives a token, a new one if asked again; `on` hears "link", "conversations", "conversation" (id), "message" (id, message), "frame".
   */
  constructor(of) {
    Object.assign(this, of);
    this.conversations = new Map();
    this.presence = new Map();
    this.people = new Set();
    this.frames = [];
    this.link = { state: "idle", since: Date.now() };
    this.welcome = null;
    this.attempt = 0;
    this.since = "0";
    this.pos = 0;
    /** Conversations of the last ACKs. */
    this.told = [];
    this.session = "";
    this.goaway = null;
    /** What an ERROR that closes asks to wait at least, ms. */
    this.holdOff = 0;
    this.key = `tidegate:outbox:${this.user}:${this.device}`;
    this.outbox = load(this.key, []);
    // What was open when the page went away may have been written to the socket.
    for (const entry of this.outbox) { entry.flying = false; entry.due = 0; this.conversation(entry.conv); }
    this.receipts = load(`tidegate:receipts:${this.user}`, {});
  }

  start() { this.connect(); }

  /** Says goodbye: the session ends, the outbox stays. */
  stop() {
    this.stopped = true;
    this.clearTimers();
    this.socket?.close(1000);
    this.setLink("idle");
  }

  // ---- Sending -----------------------------------------------------------------------------------------------------------------

  send(conv, text) {
    const entry = { cmid: newCmid(), conv, kind: 1, text, at: Date.now(), tries: 0, written: false, flying: false, due: 0 };
    this.outbox.push(entry);
    this.save();
    this.typed = 0;
    this.conversation(conv).touched = entry.at;
    this.on("conversation", conv);
    this.pump();
    return entry.cmid;
  }

  /** A message that was refused for good: again as a new one, or not at all. */
  sendAgain(cmid) {
    const entry = this.outbox.find(it => it.cmid === cmid);
    if (!entry?.failed) return;
    this.discard(cmid);
    this.send(entry.conv, entry.text);
  }

  discard(cmid) {
    const entry = this.outbox.find(it => it.cmid === cmid);
    if (!entry?.failed) return;
    this.outbox.splice(this.outbox.indexOf(entry), 1);
    this.save();
    this.on("conversation", entry.conv);
  }

  typing(conv) {
    const now = Date.now();
    if (this.link.state !== "active" || this.noSignals || now - (this.typed ?? 0) < 3000) return;
    this.typed = now;
    this.write({ t: "signal", conv, kind: SIGNAL_TYPING, text: "typing" });
  }

  /** Sends what may be sent: oldest first, and nothing past a message of the same conversation that waits. */
  pump() {
    clearTimeout(this.pumpTimer);
    if (this.link.state !== "active") return;
    const now = Date.now();
    const stopped = new Set();
    let flying = this.outbox.filter(it => it.flying).length;
    let next = Infinity;
    for (const entry of this.outbox) {
      if (entry.failed) continue;
      if (entry.flying) {
        // After a repeat nothing new goes out until all is answered: the first attempt's ERROR may be on its way.
        if (entry.tries > 1) stopped.add(entry.conv);
        continue;
      }
      const held = entry.waits && this.outbox.some(it => it.conv === entry.conv && it.flying);
      if (stopped.has(entry.conv) || held || entry.due > now) {
        stopped.add(entry.conv);
        if (entry.due > now) next = Math.min(next, entry.due);
        continue;
      }
      if (entry.written && now - entry.first > this.welcome.dedup_s * 1000) { this.tooOld(entry); continue; }
      if (flying >= this.welcome.send_window) break;
      flying += 1;
      this.sendEntry(entry, now);
      // One that failed goes alone, until it is answered.
      if (entry.waits) stopped.add(entry.conv);
    }
    if (next < Infinity) this.pumpTimer = setTimeout(() => this.pump(), next - now + 5);
  }

  sendEntry(entry, now) {
    const rid = this.request({ what: "send", entry });
    entry.flying = true;
    entry.tries += 1;
    entry.first ??= now;
    entry.sentAt = performance.now();
    entry.rid = rid;
    const flags = entry.written ? RETRY : 0;
    entry.written = true;
    this.save();
    this.write({ t: "send", rid, cmid: entry.cmid, ...(flags && { flags }), kind: entry.kind, conv: entry.conv, text: entry.text });
    clearTimeout(entry.timer);
    const patience = ANSWER_MS * 2 ** (entry.tries - 1);
    const timer = setTimeout(() => this.unanswered(entry), patience);
    Object.defineProperty(entry, "timer", { value: timer, writable: true, configurable: true, enumerable: false });
    this.on("conversation", entry.conv);
  }

  unanswered(entry) {
    if (!entry.flying || this.link.state !== "active") return;
    if (entry.tries > TRIES_MAX) return this.socket.close(4000);
    this.pending.delete(entry.rid);
    entry.flying = false;
    this.pump();
  }

  tooOld(entry) {
    // Beyond dedup_s a repeat might count twice: look among our own messages before asking the person.
    entry.failed = "old";
    this.save();
    this.fetchNewest(this.conversation(entry.conv));
  }

  sent(frame) {
    const entry = this.pending.get(frame.rid)?.entry;
    this.pending.delete(frame.rid);
    if (!entry) return;
    clearTimeout(entry.timer);
    this.outbox.splice(this.outbox.indexOf(entry), 1);
    this.save();
    const took = performance.now() - entry.sentAt;
    const { cmid, conv, kind, text } = entry;
    const message = { seq: frame.seq, mid: frame.mid, flags: OWN, kind, cmid, from: this.user, text, level: frame.level ?? 0, took };
    if (frame.flags) message.duplicate = true;
    const conversation = this.conversation(conv);
    conversation.read = Math.max(conversation.read, frame.seq);
    conversation.unread = 0;
    this.place(conversation, message);
    this.pump();
  }

  refused(frame) {
    const pending = this.pending.get(frame.rid);
    this.pending.delete(frame.rid);
    if (!pending) {
      // A frame without rid: only SIGNAL can be what this release does not grant.
      if (frame.code === 3005) this.noSignals = true;
      else if (!frame.rid) {
        this.lastError = frame;
        if ((frame.flags ?? 0) & CLOSING) this.holdOff = frame.retry_ms ?? 0;
      }
      return;
    }
    const retryable = (frame.flags ?? 0) & RETRYABLE;
    const due = Date.now() + (frame.retry_ms ?? 0) * (1 + Math.random() / 4);
    if (pending.what === "send") {
      const entry = pending.entry;
      clearTimeout(entry.timer);
      entry.flying = false;
      if (retryable) {
        entry.waits = true;
        entry.due = Math.max(due, Date.now() + 20);
        if (frame.code === 4003) entry.tries -= 1;
      } else {
        entry.failed = frame.code;
      }
      this.save();
      this.on("conversation", entry.conv);
      this.pump();
    } else if (pending.what === "read-page") {
      this.reading = null;
      if (retryable) {
        this.reads.unshift(pending.read);
        this.readTimer = setTimeout(() => this.nextRead(), Math.max(50, due - Date.now()));
      } else {
        pending.read.done?.(null);
        this.nextRead();
      }
    }
  }

  save() { store(this.key, this.outbox); }

  // ---- Receiving ---------------------------------------------------------------------------------------------------------------

  conversation(id) {
    let found = this.conversations.get(id);
    if (!found) {
      found = {
        id, messages: [], aside: new Map(), have: 0, head: 0, floor: 1, epoch: null, read: 0, unread: 0, loaded: false, loading: false,
        older: false, typing: new Map(), touched: 0, acked: 0,
      };
      this.conversations.set(id, found);
      this.watchSoon();
    }
    return found;
  }

  /** Puts a message where it belongs, once; what lies beyond a gap waits aside. */
  place(conversation, message) {
    const fresh = message.seq > conversation.have && !conversation.aside.has(message.seq);
    if (!fresh) {
      // SENT after the page that held it already: the level is news.
      const known = conversation.messages.find(it => it.seq === message.seq);
      if (known && message.took !== undefined) Object.assign(known, { level: message.level, took: message.took });
      this.on("conversation", conversation.id);
      return false;
    }
    conversation.aside.set(message.seq, message);
    conversation.head = Math.max(conversation.head, message.seq);
    if (!conversation.loaded && message.seq === 1) conversation.loaded = true;
    this.settle(conversation);
    if (conversation.have < conversation.head) this.heal(conversation);
    return true;
  }

  settle(conversation) {
    if (!conversation.loaded) return this.on("conversation", conversation.id);
    for (let next; (next = conversation.aside.get(conversation.have + 1)); ) {
      conversation.aside.delete(next.seq);
      conversation.have = next.seq;
      conversation.messages.push(next);
      conversation.touched = Math.max(conversation.touched, time(next));
      this.forget(next);
      this.meet(next.from);
    }
    for (const seq of conversation.aside.keys()) if (seq <= conversation.have) conversation.aside.delete(seq);
    this.ackSoon();
    this.on("conversation", conversation.id);
  }

  /** One of ours that is in the history needs no answer any more. */
  forget(message) {
    if (!message.cmid || !((message.flags ?? 0) & OWN)) return;
    const entry = this.outbox.find(it => it.cmid === message.cmid);
    if (!entry) return;
    // While it flies, its SENT takes it away; until then it must not be shown twice.
    if (entry.flying) { entry.found = true; return; }
    this.outbox.splice(this.outbox.indexOf(entry), 1);
    this.save();
  }

  deliver(frame) {
    if (frame.pos) this.pos = Math.max(this.pos, frame.pos);
    const flags = frame.flags ?? 0;
    if (flags & TRANSIENT) return;
    const conversation = this.conversation(frame.conv);
    conversation.typing.delete(frame.from);
    const { seq, mid, kind, cmid, from, text, b64 } = frame;
    const isNew = this.place(conversation, { seq, mid, flags, kind, cmid, from, text: text ?? decode(b64) });
    if (!isNew) return;
    if (flags & OWN) {
      conversation.read = Math.max(conversation.read, seq);
      conversation.unread = 0;
    } else if (!(flags & QUIET) && seq > conversation.read) {
      conversation.unread += 1;
    }
    this.on("message", { conv: frame.conv, message: frame });
    this.ackSoon();
  }

  /** Asks for what is missing. */
  heal(conversation) {
    if (this.link.state !== "active" || conversation.loading || conversation.removed) return;
    if (!conversation.loaded) return this.fetchNewest(conversation);
    if (conversation.have >= conversation.head) return;
    const first = Math.min(...conversation.aside.keys(), conversation.head + 1);
    const to = first - 1;
    if (to - conversation.have > 500) {
      // Too much was missed to scroll through: begin at the end again.
      Object.assign(conversation, { messages: [], loaded: false, older: true });
      return this.fetchNewest(conversation);
    }
    conversation.loading = true;
    this.readPage({ t: "fetch", conv: conversation.id, from: conversation.have + 1, to, limit: 100 }, page => {
      conversation.loading = false;
      if (!page) return;
      if (this.newLife(conversation, page.epoch)) return this.heal(conversation);
      this.takePage(conversation, page);
      this.heal(conversation);
    });
  }

  takePage(conversation, page) {
    const floor = Math.max(1, page.floor ?? 1);
    conversation.floor = floor;
    conversation.head = Math.max(conversation.head, page.head ?? 0);
    if ((page.flags ?? 0) & BELOW_FLOOR && conversation.have < floor - 1) {
      conversation.have = floor - 1;
      conversation.broken = true;
    }
    for (const message of page.messages ?? []) {
      if (message.seq > conversation.have) conversation.aside.set(message.seq, ofPage(message));
    }
    this.settle(conversation);
  }

  fetchNewest(conversation) {
    if (conversation.loading || this.link.state !== "active") return;
    conversation.loading = true;
    this.readPage({ t: "fetch", conv: conversation.id, limit: PAGE_SIZE, flags: NEWEST }, page => {
      conversation.loading = false;
      if (!page) return;
      this.newLife(conversation, page.epoch);
      // SENT may have come before the page, and says more.
      const messages = (page.messages ?? []).map(ofPage).map(it => ({ ...it, ...conversation.aside.get(it.seq) }));
      messages.forEach(it => this.meet(it.from));
      if (!conversation.loaded) {
        conversation.messages = messages;
        conversation.have = messages.at(-1)?.seq ?? page.head ?? 0;
        conversation.older = Boolean((page.flags ?? 0) & MORE);
        conversation.loaded = true;
        if (messages.length) conversation.touched = time(messages.at(-1));
      }
      messages.forEach(it => this.forget(it));
      this.takePage(conversation, { ...page, messages: [] });
      this.heal(conversation);
      this.pump();
    });
  }

  fetchOlder(conversation) {
    const first = conversation.messages[0];
    if (!conversation.older || conversation.loading || this.link.state !== "active" || !first || first.seq <= 1) return;
    conversation.loading = true;
    const request = { t: "fetch", conv: conversation.id, to: first.seq - 1, limit: PAGE_SIZE, flags: NEWEST };
    this.readPage(request, page => {
      conversation.loading = false;
      if (!page) return;
      const messages = (page.messages ?? []).map(ofPage).filter(it => it.seq < first.seq);
      conversation.messages.unshift(...messages);
      conversation.older = Boolean((page.flags ?? 0) & MORE) && messages.length > 0;
      this.on("older", conversation.id);
    });
  }

  /** Another epoch is another numbering: what we know of this conversation is void. */
  newLife(conversation, epoch = 0) {
    const changed = conversation.epoch !== null && conversation.epoch !== epoch;
    conversation.epoch = epoch;
    if (changed) {
      conversation.aside.clear();
      Object.assign(conversation, { messages: [], have: 0, head: 0, floor: 1, acked: 0, loaded: false, older: false });
    }
    return changed;
  }

  sync(cursor = "") {
    const asked = this.since;
    this.readPage({ t: "sync", since: asked, cursor, limit: 100 }, page => {
      if (!page) return;
      for (const entry of page.entries ?? []) this.takeEntry(entry);
      if ((page.flags ?? 0) & MORE) return this.sync(page.cursor);
      this.since = page.since ?? "0";
      this.synced = true;
      // Those that only this page knows are in no entry.
      for (const it of this.conversations.values()) if (!it.loaded || it.have < it.head) this.heal(it);
      this.on("conversations");
    });
  }

  takeEntry(entry) {
    if ((entry.flags ?? 0) & REMOVED) {
      const gone = this.conversations.get(entry.conv);
      if (gone) gone.removed = true;
      return;
    }
    const conversation = this.conversation(entry.conv);
    conversation.removed = false;
    this.newLife(conversation, entry.epoch);
    conversation.head = Math.max(conversation.head, entry.head ?? 0);
    conversation.read = Math.max(conversation.read, entry.read ?? 0);
    conversation.unread = entry.unread ?? 0;
    conversation.touched = Math.max(conversation.touched, entry.head_mid ? Number(BigInt(entry.head_mid) >> 20n) : 0);
    if (!conversation.loaded || conversation.head > conversation.have) this.heal(conversation);
  }

  /** The person has seen everything of this conversation. */
  markRead(conversation) {
    const seq = conversation.have;
    if (this.link.state !== "active" || seq <= conversation.read) return;
    conversation.read = seq;
    conversation.unread = 0;
    this.write({ t: "read", rid: this.request({ what: "read" }), conv: conversation.id, seq });
    this.on("conversation", conversation.id);
  }

  ackSoon() {
    this.unacked = (this.unacked ?? 0) + 1;
    if (this.unacked >= (this.welcome?.window ?? 256) / 2) return this.ack();
    this.ackTimer ??= setTimeout(() => this.ack(), ACK_AFTER_MS);
  }

  ack() {
    clearTimeout(this.ackTimer);
    this.ackTimer = null;
    this.unacked = 0;
    if (this.link.state !== "active") return;
    const moved = [...this.conversations.values()].filter(it => it.loaded && it.have > it.acked).slice(0, 256);
    if (!moved.length && this.pos === this.ackedPos) return;
    for (const conversation of moved) conversation.acked = conversation.have;
    this.told = [...this.told, ...moved].slice(-256);
    this.ackedPos = this.pos;
    this.write({ t: "ack", pos: this.pos, cursors: moved.map(({ id, have }) => ({ conv: id, seq: have })) });
  }

  // ---- One SYNC or FETCH at a time ---------------------------------------------------------------------------------------------

  readPage(frame, done) {
    this.reads.push({ frame, done });
    this.nextRead();
  }

  nextRead() {
    if (this.reading || !this.reads.length || this.link.state !== "active") return;
    const read = this.reads.shift();
    this.reading = read;
    this.write({ ...read.frame, rid: this.request({ what: "read-page", read }) });
  }

  page(frame) {
    const pending = this.pending.get(frame.rid);
    this.pending.delete(frame.rid);
    if (!pending) return;
    this.reading = null;
    pending.read.done(frame);
    this.nextRead();
  }

  // ---- Presence and receipts, where granted ------------------------------------------------------------------------------------

  get shows() {
    const caps = this.link.state === "active" ? this.welcome?.caps ?? 0 : 0;
    return { receipts: Boolean(caps & CAP_RECEIPTS), presence: Boolean(caps & CAP_PRESENCE) };
  }

  meet(user) {
    if (this.people.has(user)) return;
    this.people.add(user);
    this.watchSoon();
  }

  watchSoon() {
    clearTimeout(this.watchTimer);
    this.watchTimer = setTimeout(() => this.watch(), 150);
  }

  /** Watches the other party of every direct conversation, and whoever wrote; the set ends by itself, so it is asked for again. */
  watch() {
    clearTimeout(this.watchTimer);
    if (!this.shows.presence) return;
    const users = new Set([...this.conversations.values()].map(it => peer(it.id, this.user)).filter(Boolean));
    this.people.forEach(user => users.add(user));
    users.delete(this.user);
    if (users.size) this.write({ t: "watch", rid: this.request({ what: "watch" }), users: [...users].slice(0, WATCH_MAX) });
    this.watchTimer = setTimeout(() => this.watch(), 240000);
  }

  receipt({ conv, user, recv = 0, read = 0 }) {
    if (user === this.user) {
      const conversation = this.conversation(conv);
      if (read > conversation.read) {
        conversation.read = read;
        if (read >= conversation.have) conversation.unread = 0;
      }
    } else {
      const of = (this.receipts[conv] ??= {});
      const was = of[user] ?? { recv: 0, read: 0 };
      of[user] = { recv: Math.max(was.recv, recv, read), read: Math.max(was.read, read) };
      store(`tidegate:receipts:${this.user}`, this.receipts);
    }
    this.on("conversation", conv);
  }

  // ---- The connection ----------------------------------------------------------------------------------------------------------

  async connect() {
    if (this.stopped) return;
    this.setLink("connecting");
    this.pending = new Map();
    this.reads = [];
    this.reading = null;
    this.lastRid = 0;
    let token;
    try {
      token = await this.fresh(this.badToken > 0);
    } catch {
      // Whoever makes tokens is away as well: the same delays.
      return this.lost(0, "token");
    }
    if (this.stopped) return;
    const socket = new WebSocket(this.url, ["tidegate.v1.json"]);
    this.socket = socket;
    socket.onopen = () => {
      this.heard = Date.now();
      const hello = { t: "hello", platform: 1, window: 256, caps: CAP_RECEIPTS | CAP_PRESENCE, device: this.device, client: "demo/1" };
      if (this.session) Object.assign(hello, { session: this.session, last_pos: this.pos });
      this.write({ ...hello, token });
    };
    socket.onmessage = event => {
      this.heard = Date.now();
      for (const line of event.data.split("\n")) if (line) this.handle(JSON.parse(line), line);
    };
    socket.onclose = event => { if (this.socket === socket) this.closed(event.code); };
  }

  handle(frame, line) {
    this.note("in", line);
    switch (frame.t) {
      case "welcome": return this.welcomed(frame);
      case "sent": return this.sent(frame);
      case "deliver": return this.deliver(frame);
      case "page": case "sync_page": return this.page(frame);
      case "ok": return void this.pending.delete(frame.rid);
      case "error": return this.refused(frame);
      case "notice": {
        const conversation = this.conversation(frame.conv);
        conversation.head = Math.max(conversation.head, frame.head);
        return this.heal(conversation);
      }
      case "resync": return void setTimeout(() => this.link.state === "active" && this.sync(), Math.random() * 5000);
      case "conv": {
        if (frame.event === 2) this.conversation(frame.conv).removed = true;
        clearTimeout(this.syncTimer);
        this.syncTimer = setTimeout(() => this.link.state === "active" && this.sync(), 100);
        return this.on("conversations");
      }
      case "receipt": return this.receipt(frame);
      case "presence": {
        this.presence.set(frame.user, { online: frame.state === 1, seen: frame.seen_ms });
        return this.on("conversations");
      }
      case "signalled": {
        if (frame.kind !== SIGNAL_TYPING || frame.from === this.user) return;
        const conversation = this.conversation(frame.conv);
        conversation.typing.set(frame.from, Date.now() + 5000);
        setTimeout(() => this.on("conversation", frame.conv), 5050);
        return this.on("conversation", frame.conv);
      }
      case "expiring": {
        const renew = token => this.write({ t: "auth", rid: this.request({ what: "auth" }), token });
        return void this.fresh(true).then(renew, () => {});
      }
      case "goaway": {
        this.goaway = { delay: frame.delay_ms ?? 0, spread: frame.spread_ms ?? 0 };
        this.ack();
        // What waits for an answer gets it within the grace, and the gateway closes then. Without that there is nothing to wait for.
        this.setLink("draining");
        if (!this.outbox.some(entry => entry.flying)) this.socket.close(1000);
        return;
      }
    }
  }

  welcomed(frame) {
    this.welcome = frame;
    const resumed = frame.resumed === 1;
    this.session = frame.session;
    if (!resumed) this.pos = 0;
    this.ackedPos = this.pos;
    // An ACK is not answered: the last ones may be lost with the connection.
    for (const conversation of this.told.splice(0)) conversation.acked = 0;
    this.ackSoon();
    this.noSignals = false;
    this.goaway = null;
    this.steadyTimer = setTimeout(() => (this.attempt = 0), 60000);
    this.watchdog = setInterval(() => this.probe(), 5000);
    this.setLink("active", { resumed });
    // Those that the history showed meanwhile are done.
    this.outbox = this.outbox.filter(entry => !entry.found);
    for (const entry of this.outbox) Object.assign(entry, { flying: false, waits: false, due: 0, tries: 0 });
    this.save();
    this.pump();
    for (const conversation of this.conversations.values()) {
      conversation.loading = false;
      if (resumed && !(conversation.loaded && conversation.have >= conversation.head)) this.heal(conversation);
    }
    if (!resumed) this.sync();
    this.watch();
  }

  /** A browser does not show pings: silence is tested with one of our own. */
  probe() {
    const silence = Date.now() - this.heard;
    if (silence > SILENCE_MS + ANSWER_MS) return this.socket.close(4000);
    if (silence > SILENCE_MS) this.write({ t: "ping", pos: this.pos });
  }

  closed(code) {
    if (code === 4401 && this.link.state !== "active") this.badToken = (this.badToken ?? 0) + 1;
    if ([4400, 4403, 4409].includes(code) || this.badToken > 2) {
      this.clearTimers();
      return this.setLink("stopped", { code });
    }
    this.lost(code);
  }

  lost(code, reason) {
    this.clearTimers();
    if (this.stopped) return;
    for (const entry of this.outbox) { clearTimeout(entry.timer); entry.flying = false; }
    const planned = this.goaway
      ? this.goaway.delay + Math.random() * this.goaway.spread
      : Math.random() * Math.min(30000, 500 * 2 ** this.attempt);
    const delay = Math.max(planned, this.holdOff * (1 + Math.random() / 4));
    if (!this.goaway) this.attempt += 1;
    this.goaway = null;
    this.holdOff = 0;
    this.setLink("waiting", { code, reason, until: Date.now() + delay, attempt: this.attempt });
    this.retryTimer = setTimeout(() => this.connect(), delay);
    for (const id of this.conversations.keys()) this.on("conversation", id);
  }

  /** A person wants it now. */
  connectNow() {
    if (this.link.state !== "waiting" && this.link.state !== "stopped") return;
    clearTimeout(this.retryTimer);
    this.badToken = 0;
    this.connect();
  }

  clearTimers() {
    for (const timer of ["steadyTimer", "retryTimer", "pumpTimer", "readTimer", "ackTimer", "watchTimer"]) clearTimeout(this[timer]);
    clearInterval(this.watchdog);
    this.ackTimer = null;
  }

  request(of) {
    this.lastRid += 1;
    this.pending.set(this.lastRid, of);
    return this.lastRid;
  }

  write(frame) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(JSON.stringify(frame));
    this.note("out", JSON.stringify(frame.token ? { ...frame, token: "…" } : frame));
  }

  note(way, text) {
    this.frames.push({ way, text, at: Date.now() });
    if (this.frames.length > FRAMES_KEPT) this.frames.shift();
    this.on("frame");
  }

  setLink(state, more = {}) {
    this.link = { state, since: Date.now(), ...more };
    if (state === "active") this.badToken = 0;
    this.on("link");
  }
}

/** The other party of a direct conversation; undefined for a group. */
export function peer(conv, user) {
  const [kind, a, b] = conv.split(":");
  return kind === "d" ? (a === user ? b : a) : undefined;
}

export function direct(a, b) { return a < b ? `d:${a}:${b}` : `d:${b}:${a}`; }

/** When it was sent: the upper 44 bits of mid. */
export function time(message) { return message.mid ? Number(BigInt(message.mid) >> 20n) : message.at; }

export { TOMBSTONE };

function ofPage({ seq, mid, flags = 0, kind, cmid, from, text, b64 }) {
  return { seq, mid, flags, kind, cmid, from, text: flags & TOMBSTONE ? "" : text ?? decode(b64) };
}

function decode(b64) { return b64 === undefined ? "" : `⟨${atob(b64).length} bytes⟩`; }

/** A UUIDv7: time first, so that a store keeps neighbours together. */
function newCmid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const now = BigInt(Date.now());
  for (let i = 0; i < 6; i += 1) bytes[i] = Number((now >> BigInt(8 * (5 - i))) & 255n);
  bytes[6] = 0x70 | (bytes[6] & 15);
  bytes[8] = 0x80 | (bytes[8] & 63);
  return [...bytes].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

function load(key, fallback) {
  try { return JSON.parse(localStorage.getItem(key)) ?? fallback; } catch { return fallback; }
}

function store(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* Full or forbidden: the outbox lives as long as the page. */ }
}
