"use strict";
// Sends dropped images in small groups and shows the answers; every text goes in as text.
const find = (id) => document.getElementById(id);
const GROUP = 4;
let limits = { files: GROUP };

async function describe() {
  const facts = await (await fetch("api/detector")).json();
  limits = facts;
  find("title").textContent = `${facts.method} on ${facts.data} ${facts.category}`;
  const percent = (share) => `${(100 * share).toPrecision(2)} %`;
  const promise = facts.average_false_alarm_rate === null ? "" :
    `, ${percent(facts.average_false_alarm_rate)} false alarms on average, up to ` +
    `${percent(facts.false_alarm_rate_limit)} with this calibration (95 %)`;
  find("facts").textContent = facts.rule === "nfa" ?
    "alarm when log10 NFA < 0 somewhere in the image" :
    `alarm when score > ${facts.threshold.toPrecision(4)} (${facts.rule}${promise})`;
  document.title = `goodparts: ${find("title").textContent}`;
}

async function send(files) {
  const all = [...files];
  let done = 0;
  for (let at = 0; at < all.length; at += Math.min(GROUP, limits.files)) {
    const group = all.slice(at, at + Math.min(GROUP, limits.files));
    find("status").textContent = `Scoring ${done + 1} of ${all.length} ...`;
    const form = new FormData();
    for (const file of group) form.append("files", file, file.name);
    try {
      const reply = await fetch("api/score?pictures=true", { method: "POST", body: form });
      if (!reply.ok) throw new Error(await refusal(reply));
      for (const answer of await reply.json()) show(answer);
    } catch (error) {
      for (const file of group) show({ name: file.name, error: error.message });
    }
    done += group.length;
  }
  find("status").textContent = `${done} image${done === 1 ? "" : "s"} scored.`;
}

async function refusal(reply) {
  const text = await reply.text();
  try { return JSON.parse(text).detail || text; } catch { return text; }
}

function show(answer) {
  const card = find("card").content.cloneNode(true).querySelector("li");
  const part = (name) => card.querySelector(name);
  part(".name").textContent = answer.name;
  part(".match").hidden = true;
  if (answer.error) {
    card.classList.add("failed");
    part(".verdict").textContent = "Not scored";
    part(".score").textContent = answer.error;
  } else {
    card.classList.add(answer.alarm ? "alarm" : "pass");
    part(".verdict").textContent = answer.alarm ? "Alarm" : "Good part";
    const limit = limits.rule === "nfa" ? "" : `, threshold ${answer.threshold.toPrecision(4)}`;
    part(".score").textContent = `score ${answer.score.toPrecision(4)}${limit}`;
    part(".scale").hidden = limits.rule === "nfa"; // its limit does not lie on the score
    const place = 50 * answer.score / (Math.abs(answer.threshold) || 1);
    part(".mark").style.left = `${Math.max(0, Math.min(100, place))}%`;
    part(".plain").src = answer.picture;
    part(".plain").alt = `${answer.name} as the model saw it`;
    part(".warm").src = answer.overlay;
    part(".warm").style.opacity = find("heat").value / 100;
    if (answer.explanation) explain(part, answer.explanation);
  }
  find("cards").prepend(card);
  find("empty").hidden = true;
}

function explain(part, why) {
  part(".match").hidden = false;
  part(".test").src = why.test_patch;
  part(".normal").src = why.normal_patch;
  part("figcaption").textContent =
    `Left: the most unusual patch. Right: the nearest normal one, from ${why.source} ` +
    `(distance ${why.distance.toPrecision(4)}).`;
}

find("files").addEventListener("change", (event) => {
  send(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragenter"]) {
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
}
find("drop").addEventListener("dragleave", () => find("drop").classList.remove("over"));
find("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  send(event.dataTransfer.files);
});
find("heat").addEventListener("input", (event) => {
  for (const image of document.querySelectorAll(".warm")) image.style.opacity = event.target.value / 100;
});
find("clear").addEventListener("click", () => {
  find("cards").replaceChildren();
  find("empty").hidden = false;
  find("status").textContent = "";
});
describe();
