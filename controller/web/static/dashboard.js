// Shows what the API says, every two seconds. Whatever comes from outside becomes text, never markup.
"use strict";

const REFRESH_MS = 2000;
const EVENTS_SHOWN = 25;
const KEY = "ratchet-token";
const ALARMS = /failed|rolled_back|rejected|aborted|inconclusive|incident.opened/;
const byId = (id) => document.getElementById(id);

function element(tag, content, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const part of [content].flat()) {
    if (part !== null && part !== undefined) made.append(part);
  }
  return made;
}

const moment = (iso) => iso.slice(0, 19).replace("T", " ");
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const versionName = (number) => (number === null ? "–" : `v${number}`);
const score = (value) => (value === null ? "–" : value.toFixed(3));

class Unauthorized extends Error {}

async function ask(path) {
  const answer = await fetch(`/api/v1${path}`, {
    headers: { authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` },
  });
  if (answer.status === 401) throw new Unauthorized();
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function trafficBar(model) {
  const weights = Object.entries(model.traffic.weights).sort(([a], [b]) => a - b);
  const parts = weights.map(([number, weight]) => {
    const part = element("i", null, Number(number) === model.champion ? "champion" : "");
    part.style.width = `${weight}%`;
    return part;
  });
  const words = weights.map(([number, weight]) => `v${number} ${weight} %`);
  if (model.traffic.shadow !== null) words.push(`v${model.traffic.shadow} in shadow`);
  return [element("div", parts, "bar"), element("div", words.join(", ") || "nothing serves", "legend")];
}

function phaseCell(model) {
  const holds = Object.entries(model.held).filter(([, hold]) => hold !== null);
  const parts = [(model.phase ?? "–").replaceAll("_", " ")];
  for (const [name, hold] of holds) {
    const mark = element("div", name, "held");
    mark.title = `${hold.by}: ${hold.reason}`;
    parts.push(mark);
  }
  return element("td", parts);
}

function modelRow(model) {
  const scored = element("td", [element("div", score(model.score)), element("div", model.score === null ? "" : model.metric, "legend")]);
  scored.title = "when it was judged";
  const row = element("tr", [
    element("td", model.name, "name"), element("td", versionName(model.champion)), scored, phaseCell(model),
    element("td", trafficBar(model)), element("td", model.sentence, "said"),
  ]);
  row.classList.toggle("meant", location.hash === `#${model.name}`); // by a link in a message
  return row;
}

function eventLine(event) {
  const line = element("li", [
    element("span", moment(event.at), "faint"), element("span", event.model), element("span", event.kind, "kind"),
    element("span", event.sentence),
  ]);
  if (ALARMS.test(event.kind)) line.classList.add("alarm");
  return line;
}

function incidentLine(incident) {
  const names = incident.names.slice(0, 3).join(", ") + (incident.models > Math.min(3, incident.names.length) ? ", …" : "");
  return element("li", [
    element("span", `since ${moment(incident.since)}`, "faint"), element("span", counted(incident.models, "model")),
    element("span", incident.kind.replaceAll("_", " "), "kind"),
    element("span", `${incident.sentence} (${incident.source}; ${names})`),
  ]);
}

function show(models, events, incidents) {
  byId("login").hidden = true;
  byId("models").hidden = byId("events").hidden = false;
  byId("incidents").hidden = incidents.length === 0;
  document.querySelector("#incidents ol").replaceChildren(...incidents.map(incidentLine));
  document.querySelector("#models tbody").replaceChildren(...models.map(modelRow));
  document.querySelector("#models .none").hidden = models.length > 0;
  document.querySelector("#events ol").replaceChildren(...events.reverse().map(eventLine));
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

function askForToken(error) {
  byId("models").hidden = byId("events").hidden = byId("incidents").hidden = true;
  byId("login").hidden = false;
  byId("login-error").textContent = error;
  say("token needed");
  byId("token").focus();
}

async function refresh() {
  try {
    const [{ models }, { events }, { incidents }] = await Promise.all([
      ask("/models"), ask(`/events?newest=true&limit=${EVENTS_SHOWN}`), ask("/incidents?open=true"),
    ]);
    show(models, events, incidents);
    const open = models.filter((model) => model.cycle !== null).length;
    const now = moment(new Date().toISOString());
    say(`${counted(models.length, "model")}, ${counted(open, "open cycle")}, as of ${now}; all times are UTC`);
  } catch (error) {
    if (error instanceof Unauthorized) {
      askForToken(sessionStorage.getItem(KEY) ? "The daemon does not accept this token." : "");
      sessionStorage.removeItem(KEY);
      return;
    }
    say(`the daemon does not answer: ${error.message}`, true);
  }
  setTimeout(refresh, REFRESH_MS);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("token").value.trim());
  byId("token").value = "";
  refresh();
});
const showMeant = () => document.querySelector("tr.meant")?.scrollIntoView({ block: "center" });
refresh().then(showMeant);
