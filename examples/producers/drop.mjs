#!/usr/bin/env node
// Queues standard input as the value of KEY: a drop-only producer, from docs/protocol.md.    drop.mjs INBOX KEY <value
// It knows neither delays nor if_waiting, which fsinbox add has. Bounds hold for it: the consumer leaves in drop/ what
// would exceed them.
import { execFileSync } from "node:child_process";
import {
  fsyncSync, futimesSync, lstatSync, openSync, readFileSync, renameSync, statfsSync, unlinkSync, writeFileSync,
} from "node:fs";
const [inbox, key] = process.argv.slice(2);
const partial = /\.(tmp|part|partial|filepart|crdownload|download|opdownload|aria2|sw[pox])$|~$|^~syncthing~|\.~|^~\$/i;
const litter = /^#.*#$|^(4913|thumbs\.db|desktop\.ini)$/is; // (drop/.fsinboxignore may name more: that is not read here)
if (!key || /\/|^\./.test(key) || partial.test(key) || litter.test(key))
  throw new Error("usage: drop.mjs INBOX KEY <value; KEY is a plain file name");
for (const folder of [`${inbox}/tmp`, `${inbox}/drop`])
  if (!lstatSync(folder).isDirectory()) throw new Error(`${folder} is not a directory: refused`); // a link, perhaps
const draft = `${inbox}/tmp/node.${process.pid}.${Date.now()}`;
const file = openSync(draft, "wx", 0o660); // "wx": O_CREAT | O_EXCL
try {
  writeFileSync(file, readFileSync(0));
  futimesSync(file, 1, 1); // "written long ago": so its times tell that the rename was the last thing done to it
  fsyncSync(file);
  renameSync(draft, `${inbox}/drop/${key}`);
} catch (error) { unlinkSync(draft); throw error; }
// If this fails, the value may or may not be queued. (On Btrfs an fsync of a folder may keep half of another's rename.)
if (statfsSync(inbox).type === 0x9123683e) execFileSync("sync", ["-f", `${inbox}/drop`]);
else fsyncSync(openSync(`${inbox}/drop`, "r"));
