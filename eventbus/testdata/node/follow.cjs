// A plugin in another language, with NATS' client for Node and nothing of
// gantry's. It follows events through the read service, keeps its cursor in a
// file, and says what it sees as lines of JSON.
//
//   SERVER, SEED       where the bus is, and who this is
//   CA                 file, PEM; then with TLS
//   ALLOWED, REFUSED   subjects, with blanks between them, to subscribe to
//   CURSOR, EVENTS     file of the cursor, and how many events to wait for
"use strict";
const fs = require("node:fs");
const { connect, createInbox, nkeyAuthenticator, Events } = require("nats");

const env = process.env;
const say = (what) => fs.writeSync(1, JSON.stringify(what) + "\n");

let lives = 0; // events that came by a subscription

// subscribe resolves when the bus has said whether it may.
async function subscribe(nc, subject) {
  let refused = false;
  nc.subscribe(subject, {
    callback: (err, m) => {
      if (err) refused = err.code === "PERMISSIONS_VIOLATION";
      else if (++lives) say({ live: m.subject, id: m.headers.get("ce-id") });
    },
  });
  await nc.flush();
  await nc.flush(); // what is refused is said before the second answer
  say({ subject, refused });
}

// publish resolves when the bus has said whether it may.
async function publish(nc, subject) {
  const errors = [];
  const status = nc.status();
  const seen = (async () => {
    for await (const s of status) if (s.type === Events.Error) errors.push(s.permissionContext?.subject);
  })();
  nc.publish(subject, "x");
  await nc.flush();
  await nc.flush();
  status.stop();
  await seen;
  say({ publish: subject, refused: errors.includes(subject) });
}

// read asks once, and hands each event to tell. It returns where to go on.
async function read(nc, request, tell) {
  const inbox = createInbox();
  const answers = nc.subscribe(inbox, { timeout: request.wait_ms + 10000 });
  nc.publish("gantry.bus.v1.read", JSON.stringify(request), { reply: inbox });
  for await (const m of answers) {
    const status = m.headers?.get("gantry-status");
    if (status === "ok") return m.headers.get("gantry-cursor");
    if (status) throw new Error(`${status}: ${m.string()}`);
    if (!m.headers) throw new Error("nobody answers");
    tell(m);
    fs.writeFileSync(env.CURSOR + ".new", m.headers.get("gantry-cursor"));
    fs.renameSync(env.CURSOR + ".new", env.CURSOR);
  }
}

async function main() {
  const nc = await connect({
    servers: env.SERVER,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(env.SEED)),
    tls: env.CA ? { caFile: env.CA } : undefined,
  });
  for (const s of env.ALLOWED.split(" ")) await subscribe(nc, s);
  for (const s of env.REFUSED.split(" ")) {
    await subscribe(nc, s);
    await publish(nc, s.replaceAll("*", "x").replaceAll(">", "x"));
  }
  say({ ready: true });
  let left = Number(env.EVENTS);
  let after = fs.existsSync(env.CURSOR) ? fs.readFileSync(env.CURSOR, "utf8") : "";
  while (left > 0) {
    const where = after ? { after } : { since: "1970-01-01T00:00:01Z" };
    after = await read(nc, { name: "node", max: left, wait_ms: 2000, ...where }, (m) => {
      left--;
      say({ read: m.headers.get("gantry-subject"), id: m.headers.get("ce-id"), body: m.json() });
    });
  }
  // The same event comes both ways, and either may be faster.
  for (let i = 0; i < 400 && !lives; i++) await new Promise((done) => setTimeout(done, 25));
  await nc.close();
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
