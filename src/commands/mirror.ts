import { commandGroup, sharedUsage } from './command.js'
import { status } from './mirror-status.js'
import { sync } from './mirror-sync.js'

const usage = `Mirrors: what they fetch ahead, and how they do

  boathouse mirror sync [NAME]      fetch what the mirrors' setting sync names, or that of one mirror; beside a running
                                    server too; Ctrl-C stops it, the next one goes on from there
  boathouse mirror sync --dry-run   ask the upstreams, say what would be fetched, and fetch nothing
  boathouse mirror status [NAME]    each upstream's health and quota, hits and misses, bytes held, the last sync

  --json          answer in JSON
${sharedUsage}

A sync exits with 1 when an image is not whole afterwards, or it was interrupted.`

/** `boathouse mirror …` */
export const mirror = commandGroup('mirror', usage, { sync, status })
