// The page around the client: who you are, the list, the thread, the banner.

import { Client, TOMBSTONE, direct, peer, time } from "./client.js";
import { initial, words } from "./words.js";

const $ = id => document.getElementById(id);
const wide = matchMedia("(min-width: 720px)");
let language = initial();
let say = words(language);
let config = { tokens: false, users: [], ws: "" };
let client = null;
let open = null;
let active = null;
let lock = null;
let wasLost = false;
let backUntil = 0;
let stick = true;
let seenBelow = 0;
const drafts = new Map();
const expanded = new Set();
const rows = new Map();

// ---- Who you are -------------------------------------------------------------------------------------------------------------------

async function begin() {
  theme(get("tidegate:theme"));
  speak();
  try {
    config = await (await fetch("config")).json();
  } catch {
    $("door-error").textContent = say.noGateway;
  }
  const [user, conv] = place();
  if (user && config.tokens) return enter(user, conv);
  showDoor();
}

function showDoor() {
  $("app").hidden = true;
  $("door").hidden = false;
  $("door-people").hidden = !config.tokens;
  $("token-form").hidden = config.tokens;
  $("door-hint").hidden = !config.tokens;
  fillPeople($("people"), config.users, user => enter(user));
  document.title = say.title;
}

function fillPeople(list, users, pick) {
  list.replaceChildren(...users.map(user => {
    const button = make("button", "person");
    button.type = "button";
    button.dataset.user = user;
    button.append(avatar(make("span", "avatar"), user), make("span", "", display(user)));
    button.onclick = () => pick(user);
    const item = make("li");
    item.append(button);
    return item;
  }));
}

async function enter(user, conv, token) {
  if (!/^[A-Za-z0-9_.@-]{1,64}$/.test(user)) return void ($("door-error").textContent = say.badName);
  $("door-error").textContent = "";
  const device = await takeDevice(user);
  let known = token ?? null;
  let goodUntil = token ? Infinity : 0;
  const fresh = async again => {
    if (known && !again && Date.now() < goodUntil) return known;
    if (token) return token;
    const answer = await fetch("token", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ user }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const made = await answer.json();
    [known, goodUntil] = [made.token, (made.expires_s - 120) * 1000];
    return known;
  };
  client = new Client({ url: config.ws, user, device, fresh, on: hear });
  window.tidegate = client;
  $("door").hidden = true;
  $("app").hidden = false;
  $("me-name").textContent = display(user);
  $("me-name").title = `${user} · ${say.device} ${device}`;
  avatar($("me-avatar"), user);
  client.start();
  open = null;
  show(conv ?? null, "replace");
  paint();
}

/** A device of its own for every tab of a person; the first free one, so that a tab that comes back finds its outbox. */
async function takeDevice(user) {
  let browser = get("tidegate:browser");
  if (!browser) set("tidegate:browser", (browser = Math.random().toString(16).slice(2, 8)));
  for (let number = 1; number <= 16 && navigator.locks; number += 1) {
    const device = `web-${browser}-${number}`;
    const taken = await new Promise(resolve => {
      navigator.locks.request(`tidegate:${user}:${device}`, { ifAvailable: true }, held => {
        resolve(Boolean(held));
        return held && new Promise(release => { lock = release; });
      });
    });
    if (taken) return device;
  }
  return `web-${browser}-${Math.random().toString(16).slice(2, 8)}`;
}

function leave() {
  client?.stop();
  lock?.();
  client = null;
  rows.clear();
  $("messages").replaceChildren();
  history.replaceState(null, "", "#");
  showDoor();
}

// ---- What the client says ----------------------------------------------------------------------------------------------------------

let painting = 0;

function hear(what, detail) {
  if (what === "link") link();
  if (what === "frame") { if (!$("wire").hidden) later(); return; }
  if (what === "older" && detail === open) return paintOlder();
  if (what === "message" && detail.conv !== open) announce(`${display(detail.message.from)}: ${detail.message.text ?? ""}`);
  later();
}

// Not an animation frame: those stand still in a tab nobody looks at, whose title still counts.
function later() { painting ||= setTimeout(() => { painting = 0; paint(); }, 16); }

function paint() {
  if (!client) return;
  paintLink();
  paintList();
  paintThread();
  paintFrames();
  const unread = [...client.conversations.values()].reduce((sum, it) => sum + it.unread, 0);
  document.title = `${unread ? `(${unread}) ` : ""}${display(client.user)} · Tidegate`;
}

function link() {
  const { state, resumed } = client.link;
  if (state === "waiting" || state === "draining") {
    if (!wasLost) announce(`${say.link[state]} ${say.keptNone}`);
    wasLost = true;
  }
  if (state === "active" && wasLost) {
    wasLost = false;
    backUntil = Date.now() + 2500;
    client.link.back = resumed ? say.backResumed : say.back2;
    announce(client.link.back);
    setTimeout(later, 2600);
  }
}

function paintLink() {
  const { state, until, code, back } = client.link;
  $("link").dataset.state = state;
  $("link-text").textContent = say.link[state];
  const waits = client.outbox.filter(it => !it.failed).length;
  const banner = $("banner");
  const act = $("banner-act");
  const kept = waits ? say.kept(waits) : say.keptNone;
  let title = "", more = "", button = "";
  if (state === "waiting") [title, more, button] = [say.lost(Math.max(0, (until - Date.now()) / 1000).toFixed(1)), kept, say.now];
  else if (state === "connecting" && wasLost) [title, more] = [say.reconnecting, kept];
  else if (state === "draining") [title, more] = [say.leaving, kept];
  else if (state === "stopped" && code === 4409) [title, button] = [say.replaced, say.useHere];
  else if (state === "stopped") [title, more] = [say.refusedClose(code), client.lastError?.detail ?? ""];
  else if (Date.now() < backUntil) title = back ?? say.back2;
  banner.hidden = !title;
  banner.dataset.state = state === "active" ? "back" : state;
  $("banner-title").textContent = title;
  $("banner-more").textContent = more;
  act.hidden = !button;
  act.textContent = button;
  if (state === "waiting") setTimeout(later, 100);
}

function paintList() {
  const list = $("list");
  const all = [...client.conversations.values()].filter(it => !it.removed || it.id === open);
  all.sort((a, b) => b.touched - a.touched || (a.id < b.id ? -1 : 1));
  const known = new Map([...list.children].map(row => [row.dataset.conv, row]));
  const wanted = all.map(it => conversationRow(it, known.get(it.id)));
  wanted.forEach((row, index) => { if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null); });
  while (list.children.length > wanted.length) list.lastChild.remove();
  list.hidden = !wanted.length;
  $("list-empty").hidden = wanted.length > 0 || !client.synced;
  if (active && !client.conversations.has(active)) active = null;
  list.toggleAttribute("data-active", Boolean(active));
  if (active) list.setAttribute("aria-activedescendant", `row-${active}`);
}

function conversationRow(conversation, row) {
  if (!row) {
    row = make("li", "row");
    row.id = `row-${conversation.id}`;
    row.dataset.conv = conversation.id;
    row.setAttribute("role", "option");
    row.append(make("span", "avatar"), make("span", "row-name"), make("time", "row-time"), make("span", "row-text"), make("span", "badge"));
    row.onclick = () => { show(conversation.id, "push"); if (wide.matches) $("text").focus(); };
  }
  const [face, name, when, text, badge] = row.children;
  paintFace(face, conversation);
  name.textContent = titleOf(conversation.id);
  const waiting = client.outbox.filter(it => it.conv === conversation.id).at(-1);
  const last = waiting ?? conversation.messages.at(-1);
  when.textContent = last ? shortTime(time(last)) : "";
  const typists = typing(conversation);
  const mine = waiting || (last && last.from === client.user);
  put(text, typists.length ? say.typing(names(typists)) : last ? `${mine ? `${say.you}: ` : isGroup(conversation.id) ? `${display(last.from)}: ` : ""}${last.text}` : "");
  text.classList.toggle("is-typing", typists.length > 0);
  badge.textContent = conversation.unread ? (conversation.unread > 99 ? "99+" : conversation.unread) : "";
  badge.setAttribute("aria-label", conversation.unread ? say.unread(conversation.unread) : "");
  row.classList.toggle("has-unread", conversation.unread > 0);
  row.setAttribute("aria-selected", String(conversation.id === open));
  row.classList.toggle("is-active", conversation.id === active);
  return row;
}

function paintFace(face, conversation) {
  const other = peer(conversation.id, client.user);
  avatar(face, other ?? conversation.id, !other);
  const presence = client.shows.presence && other && other !== client.user ? client.presence.get(other) : null;
  face.dataset.presence = presence ? (presence.online ? "online" : "offline") : "";
}

// ---- The thread --------------------------------------------------------------------------------------------------------------------

function show(conv, how) {
  if (conv && !client.conversations.has(conv) && !/^[dgcs]:[A-Za-z0-9_.:@-]+$/.test(conv)) conv = null;
  if (open) drafts.set(open, $("text").value);
  const changed = open !== conv;
  open = conv;
  if (conv) active = conv;
  const hash = `#${client.user}${conv ? `/${conv}` : ""}`;
  if (how === "push" && location.hash !== hash) history.pushState(null, "", hash);
  if (how === "replace") history.replaceState(null, "", hash);
  $("app").dataset.view = conv ? "talk" : "list";
  $("talk").hidden = !conv;
  $("nothing").hidden = Boolean(conv);
  if (conv && changed) {
    // A whole conversation is not news to a screen reader.
    $("scroll").setAttribute("aria-live", "off");
    setTimeout(() => $("scroll").setAttribute("aria-live", "polite"), 500);
    rows.clear();
    $("messages").replaceChildren();
    $("text").value = drafts.get(conv) ?? "";
    grow();
    stick = true;
    client.heal(client.conversation(conv));
  }
  paint();
}

function paintThread() {
  if (!open) return;
  const conversation = client.conversation(open);
  const other = peer(open, client.user);
  paintFace($("talk-avatar"), conversation);
  $("talk-name").textContent = titleOf(open);
  $("talk-id").textContent = open;
  $("text").placeholder = say.write;
  $("text").setAttribute("aria-label", say.writeTo(titleOf(open)));
  const typists = typing(conversation);
  const presence = client.shows.presence && other ? client.presence.get(other) : null;
  let state = "";
  if (typists.length) state = say.typing(names(typists));
  else if (other === client.user) state = say.note;
  else if (presence) state = presence.online ? say.online : presence.seen ? say.seen(shortTime(presence.seen)) : say.offline;
  else if (isGroup(open)) state = say.members;
  put($("talk-state"), state);
  $("talk-state").classList.toggle("is-typing", typists.length > 0);
  $("talk-state").classList.toggle("is-online", Boolean(presence?.online && !typists.length));
  $("composer").inert = Boolean(conversation.removed);
  paintMessages(conversation);
  seen(conversation);
}

function paintMessages(conversation) {
  const scroll = $("scroll");
  const pending = client.outbox.filter(it => it.conv === conversation.id && !it.found).map(it => ({ ...it, from: client.user, entry: it }));
  const all = [...conversation.messages, ...pending];
  const wanted = [];
  if (conversation.broken) wanted.push(note("broken", say.broken));
  let before = null;
  for (const message of all) {
    const at = time(message);
    if (!before || day(time(before)) !== day(at)) {
      wanted.push(note(`day-${day(at)}`, dayName(at)));
      before = null;
    }
    const joins = before && before.from === message.from && at - time(before) < 300000;
    wanted.push(bubble(conversation, message, joins));
    before = message;
  }
  if (conversation.removed) wanted.push(note("removed", say.removed));
  else if (!all.length && conversation.loaded) wanted.push(note("empty", say.noMessages));
  const list = $("messages");
  wanted.forEach((row, index) => { if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null); });
  while (list.children.length > wanted.length) list.lastChild.remove();
  if (stick) scroll.scrollTop = scroll.scrollHeight;
  const missed = conversation.have - seenBelow;
  $("below").hidden = stick || missed <= 0;
  $("below").textContent = missed > 0 ? say.newMessages(missed) : "";
}

function paintOlder() {
  const scroll = $("scroll");
  const fromEnd = scroll.scrollHeight - scroll.scrollTop;
  paint();
  scroll.scrollTop = scroll.scrollHeight - fromEnd;
}

function bubble(conversation, message, joins) {
  const mine = message.from === client.user;
  // The same row from the first keystroke's Enter to "read": by cmid while we know it.
  const key = message.cmid ?? `seq-${message.seq}`;
  let row = rows.get(key);
  if (!row) {
    row = make("li", "message");
    row.dataset.key = key;
    const body = make("div", "bubble");
    const meta = make("button", "meta");
    meta.type = "button";
    meta.append(make("time"), make("span", "state"), make("span", "sr"));
    meta.onclick = () => { expanded.has(key) ? expanded.delete(key) : expanded.add(key); later(); };
    body.append(make("span", "from"), make("span", "text"), meta);
    row.append(make("span", "avatar"), body, make("p", "facts"), make("div", "choice"));
    rows.set(key, row);
  }
  const [face, body, facts, choice] = row.children;
  const [from, text, meta] = body.children;
  row.classList.toggle("mine", mine);
  row.classList.toggle("joins", Boolean(joins));
  row.dataset.seq = message.seq ?? "";
  if (!mine) avatar(face, message.from);
  from.textContent = !mine && !joins && isGroup(conversation.id) ? display(message.from) : "";
  put(text, (message.flags ?? 0) & TOMBSTONE ? "—" : message.text);
  const { state, label } = stateOf(conversation, message);
  row.dataset.state = mine ? state : "";
  meta.children[0].textContent = clock(time(message));
  if (meta.children[1].dataset.icon !== state) {
    meta.children[1].dataset.icon = state;
    meta.children[1].innerHTML = mine ? ICONS[state] ?? "" : "";
  }
  put(meta.children[2], mine ? `, ${label}` : "");
  meta.title = mine ? label : say.details;
  meta.setAttribute("aria-expanded", String(expanded.has(key)));
  const parts = [];
  if (message.seq) parts.push(`#${message.seq}`);
  if (mine) parts.push(label);
  if (message.took !== undefined) parts.push(say.took(message.took < 10 ? message.took.toFixed(1) : Math.round(message.took)));
  if (message.mid) parts.push(`mid ${message.mid}`);
  put(facts, expanded.has(key) ? parts.join(" · ") : message.entry?.failed ? `${say.states.failed}: ${say.failed[message.entry.failed] ?? message.entry.failed}` : "");
  if (message.entry?.failed && !choice.children.length) {
    for (const [name, act] of [["again", "sendAgain"], ["discard", "discard"]]) {
      const button = make("button", "quiet", say[name]);
      button.type = "button";
      button.onclick = () => client[act](message.cmid);
      choice.append(button);
    }
  } else if (!message.entry?.failed && choice.children.length) {
    choice.replaceChildren();
  }
  return row;
}

function stateOf(conversation, message) {
  const entry = message.entry;
  if (entry) {
    const state = entry.failed ? "failed" : entry.flying ? "sending" : "waiting";
    return { state, label: say.states[state] };
  }
  const of = Object.entries(client.receipts[conversation.id] ?? {});
  const read = of.filter(([, it]) => it.read >= message.seq).map(([user]) => user);
  const received = of.filter(([, it]) => it.recv >= message.seq).map(([user]) => user);
  const group = isGroup(conversation.id);
  if (read.length) return { state: "read", label: group ? say.readBy(names(read)) : say.states.read };
  if (received.length) return { state: "delivered", label: group ? say.deliveredTo(names(received)) : say.states.delivered };
  const level = message.level ?? client.welcome?.level;
  return { state: "stored", label: say.states[`level${level}`] ?? say.states.stored };
}

function note(key, text) {
  let row = rows.get(key);
  if (!row) {
    row = make("li", "note");
    row.append(make("span"));
    rows.set(key, row);
  }
  put(row.firstChild, text);
  return row;
}

function seen(conversation) {
  if (!stick) return;
  seenBelow = conversation.have;
  if (document.visibilityState === "visible" && document.hasFocus() && conversation.loaded) client.markRead(conversation);
}

function typing(conversation) {
  const now = Date.now();
  return [...conversation.typing].filter(([, until]) => until > now).map(([user]) => user);
}

function paintFrames() {
  if ($("wire").hidden) return;
  const list = $("frames");
  const near = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  const known = new Map([...list.children].map(row => [row.of, row]));
  list.replaceChildren(...client.frames.map(frame => {
    const row = known.get(frame) ?? make("li", frame.way, frame.text);
    row.of = frame;
    return row;
  }));
  if (near) list.scrollTop = list.scrollHeight;
}

// ---- Hands -------------------------------------------------------------------------------------------------------------------------

const acts = {
  new: () => {
    $("new-form").reset();
    $("new-error").textContent = "";
    $("new-group").open = false;
    const others = config.users.filter(it => it !== client.user);
    fillPeople($("new-people"), others, user => { $("new").close(); talkTo(user); });
    $("new").showModal();
    $("new-person").focus();
  },
  cancel: () => $("new").close(),
  leave,
  back: () => back(),
  wire: () => {
    $("wire").hidden = !$("wire").hidden;
    document.querySelector('.side-foot [data-act="wire"]').setAttribute("aria-expanded", String(!$("wire").hidden));
    paint();
    if (!$("wire").hidden) { $("frames").scrollTop = $("frames").scrollHeight; $("frames").focus(); }
  },
  theme: () => {
    const dark = document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    set("tidegate:theme", dark ? "light" : "dark");
    theme(dark ? "light" : "dark");
  },
  language: () => {
    language = language === "en" ? "zh" : "en";
    set("tidegate:language", language);
    say = words(language);
    rows.clear();
    $("messages").replaceChildren();
    speak();
    paint();
  },
};

document.addEventListener("click", event => {
  const name = event.target.closest("[data-act]")?.dataset.act;
  if (name) acts[name]();
});

$("banner-act").onclick = () => client.connectNow();
$("name-form").onsubmit = event => { event.preventDefault(); enter($("name-input").value.trim()); };
$("token-form").onsubmit = event => {
  event.preventDefault();
  const token = $("token-input").value.trim();
  try {
    enter(JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub, null, token);
  } catch {
    $("door-error").textContent = say.badToken;
  }
};

$("new-group").ontoggle = () => { $("new-start").textContent = $("new-group").open ? say.create : say.start; };
$("new-form").onsubmit = async event => {
  event.preventDefault();
  const group = $("new-group").open;
  const fail = text => { $("new-error").textContent = text; };
  const good = name => /^[A-Za-z0-9_.@-]{1,64}$/.test(name);
  if (!group) {
    const name = $("new-person").value.trim();
    if (!good(name)) return fail(say.badName);
    $("new").close();
    return talkTo(name);
  }
  const name = $("group-name").value.trim().replaceAll(" ", "-");
  const members = [client.user, ...$("group-members").value.split(/[,，\s]+/).filter(Boolean)];
  if (!good(name) || !members.every(good)) return fail(say.badName);
  try {
    const answer = await fetch("/v1/groups", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ conv: `g:${name}`, members }),
    });
    if (!answer.ok) return fail((await answer.json()).detail);
  } catch {
    return fail(say.noGateway);
  }
  $("new").close();
  client.conversation(`g:${name}`).touched = Date.now();
  show(`g:${name}`, "push");
  $("text").focus();
};

function talkTo(user) {
  const conv = direct(client.user, user);
  client.conversation(conv).touched ||= Date.now();
  show(conv, "push");
  $("text").focus();
}

function back() {
  const row = open && $(`row-${open}`);
  show(null, "push");
  $("list").focus();
  row?.scrollIntoView({ block: "nearest" });
}

$("list").addEventListener("keydown", event => {
  const all = [...$("list").children].map(row => row.dataset.conv);
  const at = all.indexOf(active);
  const to = { ArrowDown: at + 1, ArrowUp: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    active = all[Math.min(Math.max(to, 0), all.length - 1)];
    paint();
    $(`row-${active}`)?.scrollIntoView({ block: "nearest" });
  } else if ((event.key === "Enter" || event.key === " ") && active) {
    event.preventDefault();
    show(active, "push");
    $("text").focus();
  }
});

document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || event.isComposing || $("new").open || !client) return;
  if (!$("wire").hidden) return acts.wire();
  if (open && !wide.matches) return back();
  if (open) $("list").focus();
});

$("text").addEventListener("keydown", event => {
  // An input method's Enter chooses a word; it does not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("text").addEventListener("input", () => {
  grow();
  if (open && $("text").value) client.typing(open);
});
$("composer").onsubmit = event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !open) return;
  $("text").value = "";
  drafts.delete(open);
  grow();
  stick = true;
  client.send(open, text);
  $("text").focus();
};

$("scroll").addEventListener("scroll", () => {
  const scroll = $("scroll");
  stick = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
  if (!client || !open) return;
  const conversation = client.conversation(open);
  if (scroll.scrollTop < 80) client.fetchOlder(conversation);
  if (stick) { seen(conversation); $("below").hidden = true; }
}, { passive: true });
$("below").onclick = () => { stick = true; paint(); };
for (const name of ["focus", "visibilitychange"]) addEventListener(name, () => client && later());
new ResizeObserver(() => { if (stick) $("scroll").scrollTop = $("scroll").scrollHeight; }).observe($("scroll"));
addEventListener("popstate", () => {
  const [user, conv] = place();
  if (client && user === client.user) show(conv ?? null);
});

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight, 160)}px`;
}

// ---- Words and looks ---------------------------------------------------------------------------------------------------------------

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const it of document.querySelectorAll("[data-word]")) it.textContent = say[it.dataset.word];
  for (const it of document.querySelectorAll("[data-label]")) {
    it.title = say[it.dataset.label];
    it.setAttribute("aria-label", say[it.dataset.label]);
  }
}

function theme(name) { if (name) document.documentElement.dataset.theme = name; }

function announce(text) { $("say").textContent = text; }

function place() { return location.hash.slice(1).split("/").map(decodeURIComponent).filter(Boolean); }

function display(user) { return user.charAt(0).toUpperCase() + user.slice(1); }

function names(users) { return new Intl.ListFormat(language, { type: "conjunction" }).format(users.map(display)); }

function isGroup(conv) { return !conv.startsWith("d:"); }

function titleOf(conv) {
  const other = peer(conv, client.user);
  if (other) return other === client.user ? say.note : display(other);
  return display(conv.slice(2).replaceAll("-", " "));
}

function avatar(element, name, square) {
  if (element.dataset.of !== name) {
    element.dataset.of = name;
    const plain = name.replace(/^[gcs]:/, "");
    element.textContent = plain.charAt(0).toUpperCase();
    let hash = 7;
    for (const letter of plain) hash = (hash * 41 + letter.codePointAt(0)) % 991;
    element.style.setProperty("--hue", HUES[hash % HUES.length]);
    element.classList.toggle("square", Boolean(square));
  }
  return element;
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Only what changed, so that live regions speak of nothing else. */
function put(element, text) { if (element.textContent !== text) element.textContent = text; }

function day(at) { return new Date(at).toDateString(); }

function dayName(at) {
  if (day(at) === day(Date.now())) return say.today;
  if (day(at) === day(Date.now() - 86400000)) return say.yesterday;
  return new Intl.DateTimeFormat(language, { weekday: "long", month: "long", day: "numeric" }).format(at);
}

function clock(at) { return new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", hour12: false }).format(at); }

function shortTime(at) {
  return day(at) === day(Date.now()) ? clock(at) : new Intl.DateTimeFormat(language, { month: "short", day: "numeric" }).format(at);
}

function get(key) { try { return localStorage.getItem(key); } catch { return null; } }

function set(key, value) { try { localStorage.setItem(key, value); } catch { /* Forbidden: it lasts as long as the page. */ } }

const HUES = [184, 262, 24, 338, 210, 140, 46, 300];
const icon = path => `<svg viewBox="0 0 20 14" aria-hidden="true">${path}</svg>`;
const ICONS = {
  waiting: icon('<circle cx="10" cy="7" r="5.200"/><path d="M10 4v3.200l2.200 1.400"/>'),
  sending: icon('<circle class="turns" cx="10" cy="7" r="5.200" stroke-dasharray="8 25"/>'),
  stored: icon('<path d="M5 7.500l3.200 3.200L15 4"/>'),
  delivered: icon('<path d="M1.500 7.500l3.200 3.200L11.500 4M8.500 10.500l.2.200L15.500 4"/>'),
  read: icon('<path d="M1.500 7.500l3.200 3.200L11.500 4M8.500 10.500l.2.200L15.500 4"/>'),
  failed: icon('<circle cx="10" cy="7" r="5.200"/><path d="M10 4.200v3.400M10 9.600v.2"/>'),
};

begin();
