"""Draws text as a page: `python render_text.py FONT SIZE OUT.png < TEXT`. Needs Pillow in its path."""

import sys

from PIL import Image, ImageDraw, ImageFont

font = ImageFont.truetype(sys.argv[1], int(sys.argv[2]))
text = sys.stdin.read()
left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
    (0, 0), text, font=font, spacing=int(sys.argv[2])
)
page = Image.new("L", (int(right - left) + 120, int(bottom - top) + 120), 255)
ImageDraw.Draw(page).multiline_text((60 - left, 60 - top), text, font=font, fill=0, spacing=int(sys.argv[2]))
page.save(sys.argv[3])
