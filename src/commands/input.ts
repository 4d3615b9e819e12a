import { readSmallFile } from '../../config/small-file.js'
import { Refusal } from './command.js'

/** Longest text that is read from standard input, in bytes: as much as from a file. */
const longestInput = 1024 * 1024

/** The text of a file of up to 1 MiB; `-` is standard input. @throws Refusal */
export async function readInput(file: string): Promise<string> {
  const content = file === '-' ? await readAll() : readWhole(file)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(content)
  } catch {
    throw new Refusal(`${nameOf(file)} is not UTF-8 text.`)
  }
}

/** How the input is called in messages. */
export function nameOf(file: string): string {
  return file === '-' ? 'standard input' : file
}

function readWhole(file: string): Buffer {
  const { content, trouble } = readSmallFile(file)
  if (content === undefined) throw new Refusal(`Cannot read ${file}, ${trouble}.`)
  return content
}

async function readAll(): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of process.stdin) {
    const bytes = Buffer.from(chunk)
    length += bytes.length
    if (length > longestInput) throw new Refusal('Standard input is larger than 1 MiB.')
    chunks.push(bytes)
  }
  return Buffer.concat(chunks)
}
