const find = (id) => document.getElementById(id);
const GOOD = ["complete"];
const ENDED_BADLY = {
  stopped: "The driver ended without saying why",
  failed: "The driver ended with an error",
  interrupted: "The driver was interrupted",
  budget: "The budget ended the run",
};
const colours = new Map([["accepted", 0]]); // of what the chart shows, in the order in which it was first seen
const drawn = {}; // what each part shows, so that only what changed is drawn anew
let run = null;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function part(name, data, draw) {
  const text = JSON.stringify(data);
  if (drawn[name] === text) return;
  drawn[name] = text;
  find(name).replaceChildren(...[draw(data)].flat());
}

function percent(share, whole) {
  if (!whole) return "–";
  const value = (100 * share) / whole;
  return share === 0 ? "0%" : share === whole ? "100%" : value < 1 ? "<1%" : value > 99 ? ">99%" : `${Math.round(value)}%`;
}

function duration(seconds) {
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

function digits(number) {
  return number === null ? "–" : Math.abs(number) >= 100 ? String(Math.round(number)) : String(Number(number.toPrecision(3)));
}

function time(moment, seconds = 0) {
  return new Date(Date.parse(moment) + 1000 * seconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

// Widths and colours are set as properties: the page allows no style in attributes.
function bar(accepted, short, wanted) {
  return [["ok", accepted], ["lack", short]].map(([kind, count]) => {
    const made = element("i", { class: kind });
    made.style.width = `${wanted ? (100 * count) / wanted : 0}%`;
    return made;
  });
}

function figures(shown) {
  const rows = [
    ["accepted", `${shown.accepted} of ${shown.wanted}`],
    ["open", shown.open],
    ["short", shown.short],
    ["candidates", shown.candidates],
    ["of them accepted", percent(shown.candidates - shown.rejections, shown.candidates)],
    ["accepted a minute", digits(shown.pace)],
    ["time left", shown.eta === null ? "–" : duration(shown.eta)],
    ["seconds an image", digits(shown.seconds)],
    ["cost an image", digits(shown.cost)],
    ["generators", shown.generators ?? "–"],
    ["disk free", shown.free === null ? "–" : `${(shown.free / 1e9).toFixed(1)} GB`],
  ];
  return rows.map(([name, value]) => element("div", name === "accepted" ? { class: "wide" } : {}, element("dt", {}, name), element("dd", {}, String(value))));
}

function colour(name) {
  if (!colours.has(name)) colours.set(name, colours.size);
  return `p${Math.min(colours.get(name), 7)}`;
}

function chart(timeline) {
  if (!timeline) return element("p", { class: "soft" }, "No candidate has been judged yet.");
  const { parts, begin, bin_s: width } = timeline;
  const bins = parts[0].counts.length;
  const totals = Array.from({ length: bins }, (_, bin) => parts.reduce((sum, one) => sum + one.counts[bin], 0));
  const [across, high] = [720 / bins, 120];
  const most = Math.max(...totals, 1);
  const columns = [];
  for (let bin = 0; bin < bins; bin += 1) {
    let top = high;
    parts.forEach((one) => {
      const height = (high * one.counts[bin]) / most;
      top -= height;
      if (height) columns.push(shape("rect", { class: colour(one.name), x: bin * across + 1, y: top, width: across - 2, height }));
    });
  }
  const sums = parts.map((one) => ({ name: one.name, count: one.counts.reduce((sum, count) => sum + count, 0) }));
  const words = sums.map((one) => `${one.name} ${one.count}`).join(", ");
  const axis = shape("line", { class: "axis", x1: 0, x2: 720, y1: high, y2: high });
  const picture = shape("svg", { viewBox: `0 0 720 ${high + 1}`, role: "img", "aria-label": `Candidates over time: ${words}` }, ...columns, axis);
  const legend = sums.map((one, number) =>
    element("li", {}, element("i", { class: colour(one.name) }), `${number ? "rejected: " : ""}${one.name} ${one.count}`),
  );
  const times = element("div", { class: "times" }, element("span", {}, time(begin)), element("span", {}, `up to ${most} in ${duration(Math.max(width, 1))}`), element("span", {}, time(begin, width * bins)));
  return element("div", { class: "card chart" }, picture, times, element("ul", { class: "legend" }, ...legend));
}

// A long name goes on in the next line after a slash or an underscore, not anywhere.
function breakable(text) {
  return text.split(/(?<=[/_])/).flatMap((piece) => [piece, element("wbr")]);
}

function sheet(images) {
  if (images.length === 0) return element("li", { class: "soft" }, "none yet");
  return images.map((one) => {
    const picture = element("img", { src: `images/${one.image}/160`, alt: `${one.reason ? `rejected for ${one.reason}` : "accepted"}: ${one.cell}`, loading: "lazy" });
    picture.addEventListener("error", () => picture.replaceWith(element("div", { class: "none" }, "not kept")));
    const score = one.score === null ? "not judged" : `${one.score.toFixed(2)}${one.reason && one.score < one.threshold ? ` of ${digits(one.threshold)}` : ""}`;
    const caption = element("p", {}, element("b", {}, one.reason ? `${one.reason} ` : ""), score, element("br"), ...breakable(one.cell));
    return element("li", {}, picture, caption);
  });
}

function classes({ classes: listed, more }) {
  const rows = listed.map((one) => {
    const count = `${one.accepted} of ${one.wanted}${one.short ? `, ${one.short} short` : ""}`;
    const track = element("div", { class: "bar", "aria-hidden": "true" }, ...bar(one.accepted, one.short, one.wanted));
    return element("div", {}, element("p", {}, element("span", {}, one.name), element("span", { class: "soft" }, count)), track);
  });
  return more ? [...rows, element("p", { class: "soft" }, `and ${more} fuller classes`)] : rows;
}

function cells(table) {
  find("across").textContent = `accepted of wanted, and candidates tried${table.across ? `; columns: ${table.across}` : ""}`;
  const heads = ["", ...table.columns.map((column) => column || "images")].map((name) => element("th", { scope: "col" }, name));
  const rows = table.rows.map((row) => {
    const name = element("th", { scope: "row" }, row.class, ...(row.values.length ? [element("small", {}, row.values.join(" · "))] : []));
    const counts = row.cells.map((cell) =>
      cell
        ? element("td", cell[0] >= cell[1] ? { class: "full" } : {}, `${cell[0]} of ${cell[1]}`, element("small", {}, `${cell[2]} tried`))
        : element("td", { class: "soft" }, "–"),
    );
    return element("tr", {}, name, ...counts);
  });
  if (table.more) rows.push(element("tr", {}, element("td", { colspan: heads.length, class: "soft" }, `and ${table.more} more rows`)));
  return [element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)];
}

function messages({ lines, progress }) {
  const shown = [...lines, ...(progress ? [progress] : [])];
  if (shown.length === 0) return element("p", { class: "soft" }, "none: run.log is not there yet, or the run is in a bucket");
  return shown.map((line) => element("p", {}, line));
}

function draw() {
  if (!run || run.error) return;
  const rejections = Object.values(run.rejected).reduce((sum, count) => sum + count, 0);
  const { accepted, open, short, wanted, candidates } = run;
  part("figures", { accepted, open, short, wanted, candidates, rejections, pace: run.accepted_per_min, eta: run.eta_s, seconds: run.seconds_per_image, cost: run.cost, generators: run.generators, free: run.free_bytes }, figures);
  part("whole", { accepted, short, wanted }, (data) => bar(data.accepted, data.short, data.wanted));
  find("whole").setAttribute("aria-label", `${accepted} of ${wanted} images accepted, ${short} short`);
  part("over-time", run.timeline, chart);
  part("last-accepted", run.last_accepted, sheet);
  part("last-rejected", run.last_rejected, sheet);
  part("classes", { classes: run.classes, more: run.more_classes }, classes);
  part("cells", run.cells, cells);
  part("review", run.review, (lines) => lines.map((line) => element("p", {}, line)));
  find("review-part").hidden = run.review.length === 0;
  part("messages", { lines: run.lines, progress: run.progress_line }, messages);
  find("state").textContent = run.simulated ? `${run.state}, simulated` : run.state;
  find("state").className = `pill ${GOOD.includes(run.state) ? "good" : run.state === "running" ? "wait" : ENDED_BADLY[run.state] ? "bad" : ""}`;
  document.title = `${percent(accepted, wanted)} · ${document.querySelector("h1").textContent} · balancer watch`;
}

function tick() {
  const since = run?.last_commit ? Math.max(0, (Date.now() - Date.parse(run.last_commit)) / 1000) : null;
  find("silent").textContent = since === null ? "" : run.state === "running" ? `last commit ${duration(since)} ago` : `last commit ${new Date(run.last_commit).toLocaleString()}`;
  const problems = [];
  if (source.readyState !== EventSource.OPEN) problems.push("No connection to the server: this is what was last seen.");
  if (source.readyState === EventSource.CLOSED) problems.push("If it was started anew, open the address that it shows now.");
  if (run?.error) problems.push(`The run cannot be read: ${run.error}`);
  if (run && ENDED_BADLY[run.state]) problems.push(`${ENDED_BADLY[run.state]}. \`balancer run\` with the same config and folder resumes it.`);
  find("alarm").hidden = problems.length === 0;
  if (find("alarm").textContent !== problems.join(" ")) find("alarm").textContent = problems.join(" ");
}

const source = new EventSource("events");
source.addEventListener("message", (event) => {
  const told = JSON.parse(event.data);
  run = told.error && run ? { ...run, error: told.error } : told;
  if (!told.error) delete run.error;
  draw();
  tick();
});
setInterval(tick, 1000);
