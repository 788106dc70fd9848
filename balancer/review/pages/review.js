import { keep, kept, Outbox } from "./outbox.js";

const AHEAD = 5;
const KEPT = 12;
const IN_GRID = 24;
const ALIKE = 6;
const find = (id) => document.getElementById(id);
const { run, reviewer, queue } = document.body.dataset;
const prefix = `balancer-review/${run}/${reviewer}/${queue}/`;

let items = [];
let progress = { decided: 0, total: 0, sentence: "" };
let shownAt = 0;
let view = "single";
let inGrid = [];
let loading = false;
const history = []; // answers given together, the last ones at the end
const pictures = new Map(); // loaded and decoded, by image

const outbox = new Outbox(prefix, (answer) => {
  if (answer?.progress) progress = answer.progress;
  const refused = Object.values(answer?.refused ?? {});
  if (refused.length) say(`${refused.length} answers were refused: ${refused[0]}`);
  drawState();
  if (items.length === 0 && outbox.waiting.size === 0) load();
});

// --- what is shown

function picture(image) {
  if (!pictures.has(image)) {
    const loaded = new Image();
    loaded.alt = "Image to judge";
    loaded.decoding = "sync";
    loaded.src = `images/${image}`;
    loaded.decode().catch(() => (loaded.alt = "This image cannot be shown"));
    pictures.set(image, loaded);
  }
  return pictures.get(image);
}

function loadAhead() {
  const wanted = items.slice(0, AHEAD + 1).map((item) => item.image);
  wanted.forEach(picture);
  for (const image of pictures.keys()) {
    if (pictures.size <= KEPT) break;
    if (!wanted.includes(image)) pictures.delete(image);
  }
}

function show() {
  if (items.length === 0 && view !== "done") view = "single";
  if (view === "grid") return showGrid();
  const item = items[0];
  find("single").hidden = !item;
  find("grid").hidden = true;
  find("done").hidden = Boolean(item) || loading;
  if (!item) return showDone();
  find("zoom").replaceChildren(picture(item.image));
  shownAt = performance.now();
  if (find("question").textContent !== item.question) find("question").textContent = item.question;
  // What nobody waits for comes after the image is on the screen.
  setTimeout(() => {
    showExamples(item.examples);
    loadAhead();
    drawState();
    find("spoken").textContent = `Image ${progress.decided + outbox.waiting.size + 1}. ${item.question}`;
  });
}

function showExamples(examples) {
  find("examples").hidden = examples.length === 0;
  if (find("example-list").dataset.shown === examples.join()) return;
  find("example-list").dataset.shown = examples.join();
  find("example-list").replaceChildren(
    ...examples.map((image, number) => {
      const line = document.createElement("li");
      line.append(thumbnail(image, 160, `Real image ${number + 1} of the class`));
      return line;
    }),
  );
}

function thumbnail(image, side, alt) {
  const small = new Image();
  small.alt = alt;
  small.src = `images/${image}/${side}`;
  return small;
}

function showDone() {
  const left = outbox.waiting.size;
  find("done-text").textContent = left
    ? `${left} answers are kept in this browser and not saved yet. Leave this page open, or open it again later.`
    : progress.total
      ? "All answers are saved. You can close this page and stop the server."
      : "There is nothing in this queue.";
  find("undo-last").hidden = history.length === 0;
}

function showGrid() {
  find("single").hidden = find("done").hidden = true;
  find("grid").hidden = false;
  inGrid = chosenForGrid();
  const alike = inGrid.every((item) => item.question === inGrid[0].question);
  find("grid-question").textContent = alike ? inGrid[0].question : "Is each of these what stands below it?";
  find("tiles").replaceChildren(...inGrid.map(tile));
  shownAt = performance.now();
  countGrid();
  find("tiles").querySelector("button").focus();
}

// Those with the same question if there are some; else whatever comes next, each with its own. No image twice.
function chosenForGrid() {
  const images = new Set();
  const different = items.filter((item) => !images.has(item.image) && images.add(item.image));
  const alike = different.filter((item) => item.question === items[0].question);
  return (alike.length >= ALIKE ? alike : different).slice(0, IN_GRID);
}

function tile(item, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile";
  button.append(thumbnail(item.image, 320, `Image ${number + 1} of ${inGrid.length}`));
  button.addEventListener("click", () => mark(button, button.getAttribute("aria-pressed") !== "true"));
  mark(button, false);
  const line = document.createElement("li");
  line.append(button);
  if (inGrid.some((other) => other.question !== item.question)) {
    const question = document.createElement("p");
    question.textContent = item.question.replace(/^Is this /, "").replace(/\?$/, "");
    line.append(question);
  }
  return line;
}

function mark(button, wrong, reason = "") {
  button.setAttribute("aria-pressed", String(wrong));
  button.dataset.reason = wrong ? reason : "";
  button.querySelector("span")?.remove();
  if (wrong) {
    const label = document.createElement("span");
    label.textContent = reason ? `wrong: ${reason}` : "wrong";
    button.append(label);
  }
  countGrid();
}

function tiles() {
  return [...find("tiles").querySelectorAll("button")];
}

function countGrid() {
  const wrong = tiles().filter((button) => button.getAttribute("aria-pressed") === "true").length;
  find("grid-count").textContent = `save: ${tiles().length - wrong} accepted, ${wrong} rejected`;
}

function drawState() {
  const waiting = outbox.waiting.size;
  const decided = progress.decided + waiting;
  find("counts").textContent = progress.total ? `${Math.min(decided, progress.total)} of ${progress.total}` : "";
  find("bar").style.width = progress.total ? `${(100 * Math.min(decided, progress.total)) / progress.total}%` : "0";
  find("saved").textContent = outbox.problem ? `${waiting} not saved` : waiting ? `saving ${waiting}` : "all saved";
  find("saved").className = `pill ${outbox.problem ? "bad" : waiting ? "wait" : "good"}`;
  find("alarm").hidden = !outbox.problem;
  find("alarm").textContent = outbox.problem
    ? `${outbox.problem} ${waiting} ${waiting === 1 ? "answer is" : "answers are"} kept in this browser and sent again.`
    : "";
  if (progress.sentence) find("sentence").textContent = progress.sentence;
  find("undo").disabled = history.length === 0;
  if (items.length === 0 && !loading) showDone();
}

function say(text) {
  find("spoken").textContent = text;
}

// --- what is decided

function answered(item, answer, seconds, more = {}) {
  const order = Date.now();
  return { key: crypto.randomUUID(), item: item.item, answer, seconds, order, ...more };
}

function decide(answer, reason) {
  const item = items.shift();
  if (!item) return;
  const decision = answered(item, answer, (performance.now() - shownAt) / 1000, reason ? { reason } : {});
  show();
  history.push([{ decision, item }]);
  setTimeout(() => outbox.add([decision]));
}

function saveGrid() {
  const seconds = (performance.now() - shownAt) / 1000 / inGrid.length;
  const given = tiles().map((button, number) => {
    const wrong = button.getAttribute("aria-pressed") === "true";
    const reason = button.dataset.reason ? { reason: button.dataset.reason } : {};
    return { item: inGrid[number], decision: answered(inGrid[number], wrong ? "reject" : "accept", seconds, reason) };
  });
  items = items.filter((item) => !inGrid.includes(item));
  history.push(given);
  outbox.add(given.map((one) => one.decision));
  show();
}

function undo() {
  const given = history.pop();
  if (!given) return;
  items.unshift(...given.map((one) => one.item));
  view = given.length > 1 ? "grid" : "single";
  show();
  outbox.add(given.map((one) => answered(one.item, "undo", 0, { undoes: one.decision.key })));
  say("The last answer is taken back.");
}

function skip() {
  if (items.length > 1) items.push(items.shift());
  show();
}

function toggleGrid() {
  view = view === "grid" ? "single" : "grid";
  show();
}

function toggleLarge() {
  if (find("large").open) return find("large").close();
  const large = new Image();
  large.alt = "The image, enlarged";
  large.src = `images/${items[0].image}`;
  find("large").querySelector("button").replaceChildren(large);
  find("large").showModal();
}

// --- keys and buttons

function reasonOf(number) {
  return document.querySelectorAll("[data-reason][aria-keyshortcuts]")[number - 1]?.dataset.reason;
}

function keyInGrid(key) {
  const all = tiles();
  const at = all.indexOf(document.activeElement);
  const across = Math.max(1, all.findIndex((one) => one.offsetTop > all[0].offsetTop));
  const moved = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[key];
  if (moved) all[Math.min(Math.max(at + moved, 0), all.length - 1)].focus();
  else if (key === "p") saveGrid();
  else if (key === "x" && at >= 0) mark(all[at], true);
  else if (/^[1-9]$/.test(key) && at >= 0 && reasonOf(key)) mark(all[at], true, reasonOf(key));
  else return false;
  return true;
}

function keyAlone(key) {
  if (key === "p" || key === "ArrowRight") decide("accept");
  else if (key === "x" || key === "ArrowLeft") decide("reject");
  else if (/^[1-9]$/.test(key) && reasonOf(key)) decide("reject", reasonOf(key));
  else if (key === "s") skip();
  else if (key === "z") toggleLarge();
  else return false;
  return true;
}

function keyPressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest("input")) return;
  if (!find("keys-on").checked && event.key !== "?") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (find("help").open) return;
  if (find("large").open && key !== "z") find("large").close();
  const known = { u: undo, "?": () => find("help").showModal() }[key];
  if (known) known();
  else if (items.length === 0) return;
  else if (key === "g") toggleGrid();
  else if (!(view === "grid" ? keyInGrid(key) : keyAlone(key))) return;
  event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", keyPressed);
  const pressed = {
    accept: () => decide("accept"),
    reject: () => decide("reject"),
    undo,
    "undo-last": undo,
    later: skip,
    zoom: toggleLarge,
    "to-grid": () => items.length && toggleGrid(),
    "to-single": toggleGrid,
    "to-help": () => find("help").showModal(),
    "save-grid": saveGrid,
  };
  for (const [id, action] of Object.entries(pressed)) find(id).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-reason][aria-keyshortcuts]")) {
    button.addEventListener("click", () => decide("reject", button.dataset.reason));
  }
  find("keys-on").addEventListener("change", (event) => keep("balancer-keys", event.target.checked ? "on" : "off"));
  window.addEventListener("online", () => outbox.send());
  window.addEventListener("storage", decidedElsewhere);
}

// Another window of this reviewer has answered.
function decidedElsewhere(event) {
  if (!event.key?.startsWith(prefix) || event.newValue === null) return;
  const { item, answer } = JSON.parse(event.newValue);
  if (answer === "undo") return load();
  const at = items.findIndex((one) => one.item === item);
  if (at < 0) return;
  items.splice(at, 1);
  if (at === 0 || view === "grid") show();
}

async function load() {
  if (loading) return;
  loading = true;
  try {
    const response = await fetch("items");
    if (!response.ok) throw new Error(response.status === 403 ? "open the address that the server shows" : (await response.json()).error);
    const found = await response.json();
    items = withoutOnesOf(found.items, [...outbox.waiting.values()]);
    progress = found.progress;
    loading = false;
    outbox.problem = "";
    show();
    drawState();
  } catch (error) {
    loading = false;
    find("alarm").hidden = false;
    find("alarm").textContent = `The images to review cannot be listed: ${error.message}.`;
    setTimeout(load, 2000);
  }
}

// An image that is to be judged twice stays once for each answer that is not saved yet.
function withoutOnesOf(listed, waiting) {
  const answers = new Map();
  for (const { item, answer } of waiting) answers.set(item, (answers.get(item) ?? 0) + (answer === "undo" ? -1 : 1));
  return listed.filter(({ item }) => {
    const left = answers.get(item) ?? 0;
    if (left > 0) answers.set(item, left - 1);
    return left <= 0;
  });
}

find("keys-on").checked = kept("balancer-keys") !== "off";
window.addEventListener("pagehide", () => outbox.send());
listen();
await load();
outbox.send();
