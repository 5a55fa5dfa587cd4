// Drives the chat page as people would, against the real binary. Every check prints a line; the first that fails ends the run.
//
// Ann and Bo each have a browser context of their own, as two machines would. The gateway keeps its ports over its lives.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const binary = process.env.TIDEGATE;
const images = process.argv.includes("--images") ? path.resolve("../../docs/images") : null;
const room = fs.mkdtempSync(path.join(os.tmpdir(), "tidegate-browser-"));
const PATIENCE = { timeout: 20000 };
const flags = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

// Written in the moment in which the gateway dies.
const UNDER_WAY = [
  "Lines are aboard.", "Chen is at the quay.", "We cast off at one.", "Wind is south-west, four.", "Fenders are out.", "Radio on channel 12.",
  "Past the pier now.", "The gate is in sight.", "Two boats before us.", "They go in first.", "We wait at the buoy.", "Engine runs fine.",
];
let gateway = null;
let browser = null;
const [listen, admin] = [await freePort(), await freePort()];
const home = `http://127.0.0.1:${admin}/demo/`;
const foreign = [];
const complaints = [];

// Below those the kernel gives out by default, so that no connection takes it between two lives of the gateway.
async function freePort() {
  for (let tries = 0; tries < 100; tries += 1) {
    const port = 20000 + Math.floor(Math.random() * 10000);
    const server = net.createServer().listen(port, "127.0.0.1");
    if (await once(server, "listening").then(() => true, () => false)) {
      server.close();
      await once(server, "close");
      return port;
    }
  }
  throw new Error("no free port from 20000 to 29999");
}

async function start(...more) {
  const ready = path.join(room, "ready");
  fs.rmSync(ready, { force: true });
  const log = fs.openSync(path.join(room, "log"), "a");
  const out = fs.openSync(path.join(room, "out"), "w");
  gateway = spawn(binary, [
    "serve", "--listen", `127.0.0.1:${listen}`, "--admin-listen", `127.0.0.1:${admin}`, "--data-dir", path.join(room, "data"),
    "--driver", process.env.BROWSER_DRIVER ?? "auto", "--drain-window-ms", "500", "--ready-file", ready, "--store-free-bytes-min", "0", "--store-free-percent-min", "0", ...more,
  ], { stdio: ["ignore", out, log] });
  for (let tries = 0; !fs.existsSync(ready); tries += 1) {
    assert(tries < 400 && gateway.exitCode === null, "the gateway did not become ready");
    await new Promise(done => setTimeout(done, 50));
  }
}

async function end(signal) {
  const ended = once(gateway, "exit");
  gateway.kill(signal);
  await ended;
}

async function tab(context, where = "") {
  const page = await context.newPage();
  page.on("request", request => { if (!/^(http|ws):\/\/127\.0\.0\.1:/.test(request.url())) foreign.push(request.url()); });
  page.on("pageerror", error => complaints.push(error.stack));
  page.on("console", message => { if (/Content Security Policy|Refused to/.test(message.text())) complaints.push(message.text()); });
  await page.goto(home + where);
  return page;
}

const connected = page => page.waitForSelector('#link[data-state="active"]', PATIENCE);
const texts = page => page.$$eval("#messages .message .text", all => all.map(it => it.textContent));
const settled = page => page.waitForFunction(() => tidegate.outbox.length === 0, null, PATIENCE);
const has = (page, count) => page.waitForFunction(n => document.querySelectorAll("#messages .message").length >= n, count, PATIENCE);

async function write(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
}

// Just these messages in this order, once as many are drawn.
async function shows(page, said) {
  await has(page, said.length);
  assert.deepEqual(await texts(page), said);
}

async function shot(page, name) {
  if (!images) return;
  fs.mkdirSync(images, { recursive: true });
  await page.screenshot({ path: path.join(images, `${name}.png`), animations: "disabled" });
}

async function check(what, body) {
  await body();
  console.log(`ok - ${what}`);
}

async function run() {
  await start();
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: flags });
  const size = { viewport: { width: 760, height: 600 }, locale: "en-GB" };
  const annsBrowser = await browser.newContext({ ...size, colorScheme: "light" });
  const bosBrowser = await browser.newContext({ ...size, colorScheme: "dark" });
  let ann, bo;
  const said = [];

  await check("the start-up names the page and two tokens", () => {
    const greeting = fs.readFileSync(path.join(room, "out"), "utf8");
    assert(greeting.includes(home), greeting);
    assert.equal(greeting.match(/^ {2}(ann|bo) +eyJ/gm)?.length, 2, greeting);
  });

  await check("the page is served under a strict policy", async () => {
    const answer = await fetch(home);
    const policy = answer.headers.get("content-security-policy");
    assert.match(policy, /default-src 'none'/);
    assert(!/unsafe|\*|data:/.test(policy), policy);
    assert.equal((await fetch(`${home}token`, { method: "POST", headers: { origin: "http://evil.example" } })).status, 403);
  });

  await check("two people enter and talk, first and later message", async () => {
    ann = await tab(annsBrowser);
    await ann.click("#people [data-user=ann]");
    await connected(ann);
    bo = await tab(bosBrowser);
    await bo.click("#people [data-user=bo]");
    await connected(bo);
    await ann.click("[data-act=new]");
    await ann.click("#new-people [data-user=bo]");
    await write(ann, "Morning, Bo. Is the tide in yet?");
    await bo.waitForSelector(".row .badge:not(:empty)", PATIENCE);
    assert.equal(await bo.textContent(".row .badge"), "1");
    assert.match(await bo.title(), /^\(1\) Bo/);
    await bo.click(".row");
    await has(bo, 1);
    await bo.waitForFunction(() => document.querySelector(".row .badge").textContent === "", null, PATIENCE);
    await write(bo, "High water at 14:20. The gate opens half an hour before.");
    await write(bo, "Bring the long lines.");
    await has(ann, 3);
    await write(ann, "Will do. Chen comes along.");
    await settled(ann);
    await has(bo, 4);
    said.push("Morning, Bo. Is the tide in yet?", "High water at 14:20. The gate opens half an hour before.", "Bring the long lines.", "Will do. Chen comes along.");
    await shows(ann, said);
    await shows(bo, said);
  });

  await check("every message of one's own shows how far it has come", async () => {
    assert.equal((await ann.evaluate(() => tidegate.shows)).receipts, true, "the gateway grants receipts");
    await ann.waitForFunction(() => [...document.querySelectorAll(".message.mine")].every(it => it.dataset.state === "read"), null, PATIENCE);
    await ann.click(".message.mine .meta");
    await ann.waitForFunction(() => /#1 .*ms/.test(document.querySelector(".message.mine .facts").textContent), null, PATIENCE);
    await ann.click(".message.mine .meta");
  });

  await check("typing and presence are shown", async () => {
    assert.equal((await ann.evaluate(() => tidegate.shows)).presence, true, "the gateway grants presence");
    await bo.type("#text", "About");
    await ann.waitForSelector('#talk-avatar[data-presence="online"]', PATIENCE);
    await ann.waitForSelector("#talk-state.is-typing", PATIENCE);
    await bo.fill("#text", "");
  });

  await check("a second device of the same person sees all of it, sent and received", async () => {
    const second = await tab(annsBrowser, "#ann/d:ann:bo");
    await connected(second);
    await has(second, 4);
    await shows(second, said);
    const [one, two] = [await ann.evaluate(() => tidegate.device), await second.evaluate(() => tidegate.device)];
    assert.notEqual(one, two);
    await write(second, "From my other device.");
    said.push("From my other device.");
    await has(ann, 5);
    await shows(ann, said);
    await settled(second);
    await second.close();
  });

  await shot(ann, "chat-ann");
  await shot(bo, "chat-bo");

  await check("kill -9 under way, messages written meanwhile: each once, in order, on both sides", async () => {
    await has(bo, 5);
    // Half of them may be stored and unanswered; the other half lies in the socket of a process that will never read it.
    for (const half of [1, 2]) {
      const burst = UNDER_WAY.splice(0, 6);
      await ann.evaluate(lines => {
        for (const line of lines) {
          document.getElementById("text").value = line;
          document.getElementById("composer").requestSubmit();
        }
      }, burst);
      said.push(...burst);
      if (half === 1) gateway.kill("SIGSTOP");
    }
    await end("SIGKILL");
    await ann.waitForSelector('#banner[data-state="waiting"], #banner[data-state="connecting"]', PATIENCE);
    for (const text of ["Is the gateway gone?", "I write on all the same."]) {
      await write(ann, text);
      said.push(text);
    }
    await ann.waitForFunction(() => document.querySelectorAll('.message[data-state="waiting"]').length >= 8, null, PATIENCE);
    assert.match(await ann.textContent("#banner-more"), /kept and will be sent once/);
    await ann.waitForSelector('#banner[data-state="waiting"]', PATIENCE);
    await shot(ann, "chat-gateway-down");
    await start();
    await connected(ann);
    await settled(ann);
    await has(bo, said.length);
    await shows(ann, said);
    await shows(bo, said);
    const repeats = await ann.evaluate(() => tidegate.frames.filter(it => it.way === "out" && /"t":"send".*"flags":1/.test(it.text)).length);
    assert(repeats >= 6, `${repeats} repeats carried RETRY`);
  });

  await check("an ACK that is lost with its connection is said again", async () => {
    const since = await bo.evaluate(() => {
      const { send } = WebSocket.prototype;
      WebSocket.prototype.send = function (text) {
        if (!text.includes('"t":"ack"')) return send.call(this, text);
        WebSocket.prototype.send = send;
        this.close(4000);
      };
      return tidegate.link.since;
    });
    await write(ann, "Did you hear me?");
    said.push("Did you hear me?");
    await shows(bo, said);
    await bo.waitForFunction(then => tidegate.link.since > then && tidegate.link.state === "active", since, PATIENCE);
    await bo.waitForFunction(() => {
      const last = tidegate.frames.findLastIndex(it => it.way === "in" && it.text.includes('"t":"welcome"'));
      return tidegate.frames.slice(last).some(it => it.way === "out" && /"t":"ack".*"seq":[1-9]/.test(it.text));
    }, null, PATIENCE);
  });

  await check("a tab closed with messages unsent sends them when it comes back", async () => {
    await end("SIGKILL");
    await ann.waitForSelector("#banner:not([hidden])", PATIENCE);
    const device = await ann.evaluate(() => tidegate.device);
    await write(ann, "Closed before it left.");
    said.push("Closed before it left.");
    await ann.close();
    await start();
    ann = await tab(annsBrowser, "#ann/d:ann:bo");
    await connected(ann);
    assert.equal(await ann.evaluate(() => tidegate.device), device);
    await settled(ann);
    await has(ann, said.length);
    await has(bo, said.length);
    await shows(ann, said);
    await shows(bo, said);
  });

  await check("a drain is obeyed: the page leaves when told and comes back after the delay it was given", async () => {
    const left = ann.waitForFunction(() => tidegate.link.state === "waiting" && tidegate.link.until - tidegate.link.since >= 499, null, { ...PATIENCE, polling: 20 });
    await end("SIGTERM");
    await left;
    await start();
    await connected(ann);
    await connected(bo);
    await write(bo, "Back with the tide.");
    said.push("Back with the tide.");
    await has(ann, said.length);
    await shows(ann, said);
  });

  await check("a group made from the page reaches its members", async () => {
    await ann.click("[data-act=new]");
    await ann.click("#new-group summary");
    await ann.fill("#group-name", "harbour crew");
    await ann.fill("#group-members", "bo, chen");
    await ann.click("#new-start");
    await ann.waitForFunction(() => location.hash.endsWith("/g:harbour-crew"), null, PATIENCE);
    await write(ann, "All hands at one.");
    await bo.waitForSelector('[id="row-g:harbour-crew"] .badge:not(:empty)', PATIENCE);
    await settled(ann);
  });

  await check("history read from the start by a fresh device is what both saw", async () => {
    const fresh = await browser.newContext({ ...size, locale: "zh-CN", viewport: { width: 360, height: 720 }, deviceScaleFactor: 1, isMobile: true, hasTouch: true });
    const phone = await tab(fresh, "#bo");
    await phone.waitForSelector(".row .badge:not(:empty)", PATIENCE);
    assert.equal(await phone.textContent("#link-text"), "已连接");
    await phone.waitForFunction(() => document.querySelectorAll(".row").length === 2, null, PATIENCE);
    await shot(phone, "phone-list");
    await phone.tap('[id="row-d:ann:bo"]');
    await has(phone, said.length);
    await shows(phone, said);
    assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth <= 360 && document.getElementById("talk").scrollWidth <= 360), true);
    await write(phone, "两点见。");
    said.push("两点见。");
    await settled(phone);
    await shot(phone, "phone-talk");
    await phone.goBack();
    assert.equal(await phone.isVisible("#list"), true);
    await fresh.close();
  });

  await check("the keyboard does everything: list, thread, new line, back", async () => {
    await ann.focus("#list");
    await ann.keyboard.press("End");
    await ann.keyboard.press("Home");
    const [first, second] = await ann.$$eval(".row", all => all.map(it => it.dataset.conv));
    assert.equal(await ann.getAttribute("#list", "aria-activedescendant"), `row-${first}`);
    await ann.keyboard.press("ArrowDown");
    assert.equal(await ann.getAttribute("#list", "aria-activedescendant"), `row-${second}`);
    await ann.keyboard.press("Enter");
    assert.equal(await ann.evaluate(() => document.activeElement.id), "text");
    await ann.click('[id="row-d:ann:bo"]');
    await ann.keyboard.type("One line");
    await ann.keyboard.press("Shift+Enter");
    await ann.keyboard.type("and another");
    await ann.keyboard.press("Enter");
    said.push("One line\nand another");
    await settled(ann);
    await has(bo, said.length);
    await shows(bo, said);
    await ann.keyboard.press("Escape");
    assert.equal(await ann.evaluate(() => document.activeElement.id), "list");
    for (const id of ["list", "scroll", "text", "say"]) assert(await ann.$(`#${id}[role], #${id}[aria-label]`), id);
    const nameless = await ann.$$eval("button", all => all.filter(it => it.checkVisibility() && !it.textContent.trim() && !it.getAttribute("aria-label")).length);
    assert.equal(nameless, 0);
  });

  await check("a tab that sleeps for eight intervals of heartbeats stays connected", async () => {
    await end("SIGTERM");
    await start("--protocol-ping-ms", "2000");
    await connected(ann);
    await connected(bo);
    await bo.evaluate(() => { window.ticks = 0; setInterval(() => { window.ticks += 1; }, 100); });
    const since = await bo.evaluate(() => tidegate.link.since);
    const tools = await bosBrowser.newCDPSession(bo);
    // Headless tabs are always visible, and only hidden ones can be frozen: the debugger stops its script instead.
    await tools.send("Debugger.enable");
    await tools.send("Debugger.pause");
    await write(ann, "Are you asleep?");
    said.push("Are you asleep?");
    await new Promise(done => setTimeout(done, 16000));
    await tools.send("Debugger.resume");
    assert(await bo.evaluate(() => window.ticks) < 80, "it did sleep");
    await has(bo, said.length);
    await shows(bo, said);
    assert.equal(await bo.evaluate(() => tidegate.link.since), since, "on the same connection");
    const metrics = await (await fetch(`http://127.0.0.1:${admin}/metrics`)).text();
    const closes = metrics.split("\n").filter(line => /^tidegate_closes_total.* [1-9]/.test(line));
    assert.deepEqual(closes, []);
  });

  await check("no request left this machine, no error, nothing against the policy", () => {
    assert.deepEqual(foreign, []);
    assert.deepEqual(complaints, []);
  });
}

let failed = false;
try {
  await run();
} catch (error) {
  failed = true;
  console.log(`not ok - ${error.stack}`);
  for (const page of browser?.contexts().flatMap(it => it.pages()) ?? []) {
    console.log(await page.evaluate(() => window.tidegate && JSON.stringify({ user: tidegate.user, link: tidegate.link, outbox: tidegate.outbox, frames: tidegate.frames.slice(-12) })).catch(() => "gone"));
  }
  console.log(complaints.join("\n"));
  console.log(fs.readFileSync(path.join(room, "log"), "utf8").split("\n").slice(-15).join("\n"));
} finally {
  await browser?.close();
  gateway?.kill("SIGKILL");
  fs.rmSync(room, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
