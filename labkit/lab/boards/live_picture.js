// Draws what the kernel says: lanes of states, pools, rates. Between two messages only the time axis moves.
const WINDOW = 60, LABEL = 150, NOW = 110, ROW = 22, TOP = 22, MOST = 24, STALE = 4;
const PAINT = {NEW: "grey", CONNECTING: "blue", OPEN: "green", WAITING: "amber", FAILED: "red", CLOSING: "grey", CLOSED: "grey"};

function element(parent, tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
}

function plural(count, noun) { return `${count} ${noun}${count === 1 ? "" : "s"}`; }

function poolWords([, used, idle, opening, waiting, places]) {
    return `${used} in use, ${idle} idle${opening ? `, ${opening} opening` : ""}, ${waiting} waiting` + (places === null ? "" : `, of ${places}`);
}

export default {
    render({model, el}) {
        el.classList.add("labkit-live");
        const status = element(el, "div", "Waiting for the kernel.");
        status.setAttribute("role", "status");
        const canvas = element(el, "canvas");
        canvas.setAttribute("role", "img");
        const sides = element(el, "table"), more = element(el, "details");
        element(more, "summary", "The picture as text");
        const twin = element(more, "table");
        let table = new Map(), lanes = new Map(), history = new Map();
        let offset = 0, heard = 0, over = false, begun = false, spoken = 0, wanted = false, dirty = true;

        const of = kind => [...table].filter(([key]) => key.startsWith(kind + "/")).map(([key, value]) => [key.slice(kind.length + 1), value]);
        const isStale = () => begun && !over && Date.now() / 1000 - heard > STALE;
        // What is old stands still: a bar that grew on would say that the kernel knows.
        const now = () => (isStale() ? heard : Date.now() / 1000) + offset;

        function hear(message) {
            begun = begun || Boolean(message.whole);
            if (!begun) return;
            offset = message.at - Date.now() / 1000;
            heard = Date.now() / 1000;
            over = Boolean(message.over);
            if (message.whole) { table = new Map(); lanes = new Map(); history = new Map(); }
            for (const key of message.gone) { table.delete(key); if (key.startsWith("lane/")) lanes.delete(key.slice(5)); }
            for (const [key, value] of Object.entries(message.set)) table.set(key, value);
            for (const [at, lane, state, event] of message.steps) {
                if (!lanes.has(lane)) lanes.set(lane, []);
                lanes.get(lane).push({at, state, event});
            }
            for (const [name, [, value]] of of("rate")) {
                if (!history.has(name)) history.set(name, []);
                const past = history.get(name);
                if (!past.length || past[past.length - 1][0] < message.at - 0.9) past.push([message.at, value]);
            }
            forget(now() - WINDOW);
            dirty = true;
            ask();
        }

        function forget(since) {
            for (const steps of lanes.values()) while (steps.length > 1 && steps[1].at < since) steps.shift();
            for (const past of history.values()) while (past.length > 1 && past[1][0] < since) past.shift();
        }

        function say() {
            const alerts = of("alert"), shown = of("lane"), states = new Map();
            for (const [, [, state]] of shown) states.set(state, (states.get(state) || 0) + 1);
            const words = [...states].map(([state, count]) => `${count} ${state}`).join(", ") || "no connection yet";
            let text = alerts.length ? `${plural(alerts.length, "alert")}: ${alerts.map(([, value]) => value).join("; ")}. ${words}.` : `No alert. ${words}.`;
            const broker = table.get("broker");
            if (broker && broker !== "running") text = `The broker: ${broker}. ${text}`;
            if (over) text = `Ended: the lab is closed. ${text}`;
            else if (!begun) text = "Waiting for the kernel. If that lasts, run the cell again.";
            else if (isStale()) text = "No news from the kernel: what is shown is old. After a restart, run the cell again.";
            // At most once a second: a storm of changes would have a screen reader speak without end.
            if (text !== status.textContent && Date.now() - spoken > 1000) { status.textContent = text; spoken = Date.now(); }
            dirty = text !== status.textContent;
            canvas.setAttribute("aria-label", `The last ${WINDOW} seconds of each connection, pools and rates. ${words}.`);
        }

        function rows(target, head, body) {
            const text = JSON.stringify([head, body]);
            if (target.dataset.text === text) return;
            target.dataset.text = text;
            target.replaceChildren();
            const top = element(element(target, "thead"), "tr"), rest = element(target, "tbody");
            for (const cell of head) element(top, "th", cell).scope = "col";
            for (const cells of body) {
                const row = element(rest, "tr");
                cells.forEach((cell, place) => { const made = element(row, place ? "td" : "th", String(cell)); if (!place) made.scope = "row"; });
            }
        }

        function write() {
            const known = of("side").map(([name, [here, there]]) => [name, here, there]);
            rows(sides, ["seen from", "this side", "the broker"], known);
            const body = of("lane").map(([, [name, state, event]]) => [name, event ? `${state}, after ${event}` : state]);
            for (const [, value] of of("pool")) body.push([value[0], poolWords(value)]);
            for (const [, [words, value]] of of("rate")) body.push([words, value.toLocaleString("en")]);
            for (const [, value] of of("alert")) body.push(["alert", value]);
            if (more.open) rows(twin, ["what", "now"], body);
        }

        function draw() {
            const shades = getComputedStyle(el), shade = name => shades.getPropertyValue(`--labkit-${name}`).trim();
            const all = of("lane"), pools = of("pool"), rates = of("rate");
            // Those in trouble first where there are too many to draw.
            const picked = all.length <= MOST ? all : [...all].sort((a, b) => (a[1][1] === "OPEN") - (b[1][1] === "OPEN")).slice(0, MOST);
            const width = Math.max(360, el.clientWidth), height = TOP + ROW * (picked.length + pools.length + rates.length) + (all.length > MOST ? ROW : 0) + 8;
            const ratio = window.devicePixelRatio || 1;
            if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
                canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); canvas.style.height = `${height}px`;
            }
            const pen = canvas.getContext("2d");
            pen.setTransform(ratio, 0, 0, ratio, 0, 0);
            pen.clearRect(0, 0, width, height);
            canvas.style.opacity = isStale() ? 0.4 : 1;
            pen.font = "12px sans-serif"; pen.textBaseline = "middle";
            const end = now(), left = LABEL, right = width - NOW, x = at => Math.max(left, right - (end - at) / WINDOW * (right - left));
            const text = (words, at, y, paint = "text") => { pen.fillStyle = shade(paint); pen.fillText(words, at, y); };
            for (let second = 0; second <= WINDOW; second += 15) {
                pen.fillStyle = shade("rule"); pen.fillRect(x(end - second), TOP - 6, 1, height - TOP);
                text(second ? `-${second} s` : isStale() ? "last" : "now", x(end - second) - (second ? 12 : 10), 8, "grey");
            }
            let y = TOP + ROW / 2;
            for (const [key, [name, state]] of picked) {
                text(shorten(pen, name, LABEL - 16), 4, y);
                const steps = lanes.get(key) || [];
                steps.forEach((step, place) => bar(pen, shade, step, x(step.at), x(place + 1 < steps.length ? steps[place + 1].at : end), y));
                text(state, right + 8, y, PAINT[state.split(" ")[0]] || "text");
                y += ROW;
            }
            if (all.length > MOST) { text(`and ${plural(all.length - MOST, "more connection")}: see the text`, 4, y, "grey"); y += ROW; }
            for (const [, value] of pools) { text(value[0], 4, y); places(pen, shade, value, left, right, y); text(`${value[1]} in use`, right + 8, y); y += ROW; }
            for (const [name, [words, value]] of rates) {
                text(words, 4, y);
                const past = history.get(name) || [], top = Math.max(1, ...past.map(([, each]) => each));
                pen.strokeStyle = shade("blue"); pen.lineWidth = 1.5; pen.beginPath();
                past.forEach(([at, each], place) => pen[place ? "lineTo" : "moveTo"](x(at), y + 8 - 16 * each / top));
                pen.stroke();
                text(value.toLocaleString("en"), right + 8, y);
                y += ROW;
            }
        }

        // The handles of ipywidgets' sliders have no name for a screen reader; those beside this picture get theirs.
        function nameSliders() {
            for (const handle of el.closest(".labkit-board")?.querySelectorAll(".noUi-handle:not([aria-label])") || []) {
                const slider = handle.closest(".widget-slider"), of = slider?.parentElement.querySelector("button")?.textContent;
                const words = [of, slider?.querySelector(".widget-label")?.textContent].filter(Boolean).join(": ");
                if (words) handle.setAttribute("aria-label", words);
            }
        }

        function paint() {
            wanted = false;
            if (!el.isConnected || document.hidden) return;
            say(); write(); draw(); nameSliders();
        }

        function ask() { if (!wanted) { wanted = true; requestAnimationFrame(paint); } }

        model.on("msg:custom", hear);
        more.addEventListener("toggle", ask);
        const size = new ResizeObserver(ask);
        const clock = setInterval(() => {
            // A page that is loaded again may have asked before its kernel was there.
            if (!begun) model.send("whole");
            if (!over || dirty) ask();
        }, 1000);
        size.observe(el);
        model.send("whole");
        return () => { model.off("msg:custom", hear); size.disconnect(); clearInterval(clock); };
    },
};

function shorten(pen, words, most) {
    if (pen.measureText(words).width <= most) return words;
    while (words.length > 1 && pen.measureText(words + "…").width > most) words = words.slice(0, -1);
    return words + "…";
}

// A state is a shape, and its word where it fits: full, dashed, hatched, crossed, thin; blocked is framed.
function bar(pen, shade, {state}, from, to, y) {
    const [word, blocked] = state.split(" "), paint = shade(PAINT[word] || "grey"), width = Math.max(2, to - from);
    pen.save();
    pen.beginPath(); pen.rect(from, y - 9, width, 18); pen.clip();
    pen.fillStyle = pen.strokeStyle = paint; pen.lineWidth = 2;
    if (word === "OPEN") pen.fillRect(from, y - 5, width, 10);
    else if (word === "WAITING" || word === "FAILED") {
        for (let at = from - 10; at < to; at += word === "WAITING" ? 6 : 10) {
            pen.beginPath(); pen.moveTo(at, y + 6); pen.lineTo(at + 12, y - 6); pen.stroke();
            if (word === "FAILED") { pen.beginPath(); pen.moveTo(at, y - 6); pen.lineTo(at + 12, y + 6); pen.stroke(); }
        }
    } else {
        if (word === "CONNECTING") pen.setLineDash([4, 3]);
        pen.beginPath(); pen.moveTo(from, y); pen.lineTo(to, y); pen.stroke();
        pen.setLineDash([]);
    }
    if (blocked) { pen.strokeStyle = shade("red"); pen.setLineDash([4, 3]); pen.strokeRect(from + 1, y - 8, width - 2, 16); pen.setLineDash([]); }
    pen.fillStyle = paint; pen.fillRect(from, y - 9, 2, 18);
    pen.restore();
}

// Full: in use. Framed: idle. Dashed: being opened. Point: free. Circle: a caller who waits.
function places(pen, shade, [, used, idle, opening, waiting, most], left, right, y) {
    const room = Math.max(used + idle + opening, most || 0), pitch = Math.min(18, (right - left) * 0.75 / Math.max(1, room));
    let at = left + 4;
    for (let place = 0; place < room; place++, at += pitch) {
        const size = Math.max(2, pitch - 4);
        pen.lineWidth = 1.5; pen.setLineDash([]);
        if (place < used) { pen.fillStyle = shade("blue"); pen.fillRect(at, y - 6, size, 12); }
        else if (place < used + idle) { pen.strokeStyle = shade("green"); pen.strokeRect(at, y - 6, size, 12); }
        else if (place < used + idle + opening) { pen.setLineDash([3, 2]); pen.strokeStyle = shade("amber"); pen.strokeRect(at, y - 6, size, 12); pen.setLineDash([]); }
        else { pen.fillStyle = shade("grey"); pen.fillRect(at + size / 2 - 1, y - 1, 3, 3); }
    }
    pen.strokeStyle = shade("red"); pen.lineWidth = 1.5;
    for (let each = 0; each < Math.min(waiting, 8); each++, at += 14) { pen.beginPath(); pen.arc(at + 10, y, 5, 0, 2 * Math.PI); pen.stroke(); }
    if (waiting) { pen.fillStyle = shade("red"); pen.fillText(`${waiting} waiting`, at + 10, y); }
}
